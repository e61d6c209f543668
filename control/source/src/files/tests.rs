use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

use portolan_model::{Kind, Object, ObjectKey, Service};
use tempfile::TempDir;

use super::*;

/// What an edit may take until it is told.
const AT_ONCE: Duration = Duration::from_millis(200);

/// How long a test waits for what must come. The machine may be busy.
const DEADLINE: Duration = Duration::from_secs(10);

fn service(name: &str, port: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: 10.96.0.1\n  ports:\n  - port: {port}\n"
    )
}

struct World {
    dir: TempDir,
    updates: mpsc::Receiver<Update>,
    _handle: FilesHandle,
    services: BTreeMap<String, Service>,
    refusals: Vec<Refusal>,
}

impl World {
    /// A watched directory with these files in it; the first update is taken in.
    async fn with(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Self::watch(dir).await
    }

    async fn watch(dir: TempDir) -> Self {
        let (updates, handle) = FilesSource::start(dir.path()).unwrap();
        let mut world =
            Self { dir, updates, _handle: handle, services: BTreeMap::new(), refusals: Vec::new() };
        world.next().await;
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn next(&mut self) {
        let update = tokio::time::timeout(DEADLINE, self.updates.recv()).await;
        let update = update.expect("an update before the deadline").expect("the source goes on");
        assert!(update.synced);
        for event in update.events {
            match event {
                Event::Upsert(Object::Service(service)) => {
                    self.services.insert(service.key.name().to_owned(), service);
                }
                Event::Delete(ObjectKey { kind: Kind::Service, id }) => {
                    self.services.remove(id.name());
                }
                other => panic!("{other:?}"),
            }
        }
        self.refusals = update.refusals;
    }

    /// Takes updates in until these services, as `name:port`, and this many refusals are there.
    async fn until(&mut self, services: &[&str], refusals: usize) {
        loop {
            let now: Vec<_> =
                self.services.values().map(|s| format!("{}:{}", s.key.name(), s.ports[0].port)).collect();
            if now == services && self.refusals.len() == refusals {
                return;
            }
            self.next().await;
        }
    }
}

#[tokio::test]
async fn the_first_update_is_complete_also_for_an_empty_directory() {
    let empty = World::with(&[]).await;
    assert!(empty.services.is_empty() && empty.refusals.is_empty());
    let world =
        World::with(&[("a.yaml", &service("a", 1)), ("b.yml", &service("b", 2)), ("c.json", "{")]).await;
    assert_eq!(world.services.len(), 2);
    assert_eq!(world.refusals.len(), 1);
}

#[tokio::test]
async fn a_path_that_is_no_directory_is_an_error_that_names_it() {
    let error =
        FilesSource::start(Path::new("/nonexistent/portolan")).expect_err("there is no such directory");
    assert!(error.to_string().contains("/nonexistent/portolan"), "{error}");
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(FilesSource::start(file.path()), Err(StartError::Open { .. })));
}

#[tokio::test]
async fn an_edit_takes_effect_at_once() {
    let mut world = World::with(&[("a.yaml", &service("a", 1))]).await;
    // The best of several: what else the machine does may delay one of them.
    let mut best = DEADLINE;
    for port in 2..7 {
        fs::write(world.path("a.yaml"), service("a", port)).unwrap();
        let written = Instant::now();
        world.until(&[&format!("a:{port}")], 0).await;
        best = best.min(written.elapsed());
    }
    assert!(best < AT_ONCE, "{best:?}");
}

#[tokio::test]
async fn files_may_come_be_replaced_by_rename_and_go() {
    let mut world = World::with(&[]).await;
    fs::write(world.path("a.yaml"), service("a", 1)).unwrap();
    world.until(&["a:1"], 0).await;
    fs::write(world.path(".a.yaml.swp"), service("a", 2)).unwrap();
    fs::rename(world.path(".a.yaml.swp"), world.path("a.yaml")).unwrap();
    world.until(&["a:2"], 0).await;
    fs::rename(world.path("a.yaml"), world.path("a.yaml~")).unwrap();
    world.until(&[], 0).await;
}

#[tokio::test]
async fn an_edit_that_keeps_the_size_is_seen() {
    let mut world = World::with(&[("a.yaml", &service("a", 11))]).await;
    for port in 12..20 {
        fs::write(world.path("a.yaml"), service("a", port)).unwrap();
        world.until(&[&format!("a:{port}")], 0).await;
    }
}

#[tokio::test]
async fn a_bad_edit_keeps_the_last_good_version() {
    let mut world = World::with(&[("a.yaml", &service("a", 1)), ("b.yaml", &service("b", 2))]).await;
    fs::write(world.path("a.yaml"), service("a", 99_999)).unwrap();
    fs::write(world.path("b.yaml"), service("b", 3)).unwrap();
    world.until(&["a:1", "b:3"], 1).await;
    assert_eq!(*world.refusals[0].file, world.path("a.yaml"));
    assert_eq!(world.refusals[0].line, 8);
    fs::write(world.path("a.yaml"), service("a", 4)).unwrap();
    world.until(&["a:4", "b:3"], 0).await;
}

#[tokio::test]
async fn a_file_that_is_emptied_to_be_written_again_deletes_nothing() {
    let mut world = World::with(&[("a.yaml", &service("a", 1)), ("b.yaml", &service("b", 1))]).await;
    let mut slow = fs::File::create(world.path("a.yaml")).unwrap();
    // An edit elsewhere makes the directory be read while the file is empty.
    for port in 2..5 {
        fs::write(world.path("b.yaml"), service("b", port)).unwrap();
        world.until(&["a:1", &format!("b:{port}")], 0).await;
    }
    slow.write_all(service("a", 2).as_bytes()).unwrap();
    drop(slow);
    world.until(&["a:2", "b:4"], 0).await;
}

#[tokio::test]
async fn a_mounted_config_map_is_followed_through_its_symlinks() {
    let dir = tempfile::tempdir().unwrap();
    let version = |name: &str, port| {
        let version = dir.path().join(name);
        fs::create_dir(&version).unwrap();
        fs::write(version.join("a.yaml"), service("a", port)).unwrap();
    };
    version("..v1", 1);
    version("..v2", 2);
    symlink("..v1", dir.path().join("..data")).unwrap();
    symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
    let mut world = World::watch(dir).await;
    world.until(&["a:1"], 0).await;
    symlink("..v2", world.path("..data_tmp")).unwrap();
    fs::rename(world.path("..data_tmp"), world.path("..data")).unwrap();
    world.until(&["a:2"], 0).await;
}

#[tokio::test]
async fn a_directory_that_goes_and_comes_back_keeps_serving_in_between() {
    let mut world = World::with(&[("a.yaml", &service("a", 1))]).await;
    let aside = tempfile::tempdir().unwrap();
    fs::rename(world.dir.path(), aside.path().join("moved")).unwrap();
    world.until(&["a:1"], 1).await;
    fs::create_dir(world.dir.path()).unwrap();
    fs::write(world.path("a.yaml"), service("a", 2)).unwrap();
    world.until(&["a:2"], 0).await;
    fs::write(world.path("a.yaml"), service("a", 3)).unwrap();
    world.until(&["a:3"], 0).await;
}

#[tokio::test]
async fn what_is_not_a_regular_file_is_refused_without_waiting_for_it() {
    let mut world = World::with(&[]).await;
    let socket = std::os::unix::net::UnixListener::bind(world.path("a.yaml")).unwrap();
    world.until(&[], 1).await;
    assert!(world.refusals[0].reason.contains("regular"), "{:?}", world.refusals);
    drop(socket);
    let huge = fs::File::create(world.path("huge.yaml")).unwrap();
    huge.set_len(64 << 20).unwrap();
    drop(huge);
    world.until(&[], 2).await;
    assert!(world.refusals[1].reason.contains("16 MiB"), "{:?}", world.refusals);
}

#[tokio::test]
async fn the_source_ends_when_its_handle_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (mut updates, handle) = FilesSource::start(dir.path()).unwrap();
    assert!(updates.recv().await.is_some());
    drop(handle);
    let end = tokio::time::timeout(DEADLINE, updates.recv()).await.expect("the end before the deadline");
    assert_eq!(end, None);
}
