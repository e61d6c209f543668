//! A directory of ordinary Kubernetes YAML is all that the data plane needs to be told. Edits take effect at once;
//! what is wrong in them costs nothing else.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    Agent, AgentOptions, Cluster, Condition, Load, Netns, Shop, cluster_address, get, poll, public_address,
    run, service,
};
use serde_json::Value;

/// An edit is visible to packets in less than this.
const AT_ONCE: Duration = Duration::from_secs(1);
/// What the kernel does not tell of is looked for every two seconds.
const LOOKED_FOR: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(3);

/// The agent's `refusedDocuments`.
fn refused(agent: &Agent) -> Result<Vec<String>> {
    let status: Value = serde_json::from_str(&agent.view("status -o json")?)?;
    let list = status["refusedDocuments"].as_array().context("no refusedDocuments")?;
    Ok(list.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect())
}

/// Waits until exactly this many documents are refused.
fn wait_for_refusals(agent: &Agent, count: usize) -> Result<Vec<String>> {
    let all = || refused(agent).ok().filter(|list| list.len() == count);
    poll(LOOKED_FOR, &format!("{count} refusals"), all)
        .with_context(|| format!("refused are {:?}", refused(agent)))
}

/// The only refusal has to contain all of these.
fn refused_as(agent: &Agent, words: &[&str]) -> Result<()> {
    let list = wait_for_refusals(agent, 1)?;
    for word in words {
        ensure!(list[0].contains(word), "{word:?} is not in {:?}", list[0]);
    }
    Ok(())
}

/// Waits until only this server answers.
fn only(shop: &Shop, server: &str, within: Duration) -> Result<()> {
    for v6 in [false, true] {
        let (netns, to) = (&shop.client.netns, cluster_address(v6));
        // The ring of two backends gives each an equal share: 12 answers of one are chance once in 4096.
        let twelve = || (0..12).all(|_| get(netns, to).is_ok_and(|it| it.0 == server)).then_some(());
        poll(within, &format!("only {server} answers at {to}"), twelve)?;
    }
    Ok(())
}

/// How connecting fails, if it does.
fn failure(netns: &Netns, to: SocketAddr) -> Result<Option<ErrorKind>> {
    netns.enter(move || TcpStream::connect_timeout(&to, Duration::from_secs(2)).err().map(|err| err.kind()))
}

/// The text of the slices with only one backend in them.
fn slices_of(shop: &Shop, backend: usize) -> Result<String> {
    shop.publish(|index| (index == backend).then_some(Condition::Ready))?;
    Ok(std::fs::read_to_string(shop.cluster.objects().join("slices.yaml"))?)
}

/// Another service that leads to backend 0, as one document.
fn other_service(name: &str, address: &str, port: &str, shop: &Shop) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         clusterIP: {address}\n  ports:\n  - {{name: http, port: {port}, targetPort: 8080}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  namespace: shop\n  \
         labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\n\
         ports: [{{name: http, port: 8080, protocol: TCP}}]\nendpoints:\n\
         - {{addresses: [{}], nodeName: node1, conditions: {{ready: true}}}}\n---\n",
        shop.backends[0].pod.address(false)
    )
}

/// Keeps asking the service while `work` runs; no request may fail.
fn while_served(shop: &Shop, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let load = [false, true].map(|v6| Load::start(&shop.client.netns, cluster_address(v6), PAUSE));
    work()?;
    // What was done has to be in effect under load for a while.
    for _ in 0..30 {
        get(&shop.client.netns, cluster_address(false))?;
    }
    for load in load {
        let tally = load?.finish();
        ensure!(tally.failures.is_empty(), "{:?}", tally.failures);
        ensure!(tally.answers() > 5, "nobody asked: {tally:?}");
    }
    Ok(())
}

#[test]
fn the_examples_are_served_as_they_are() -> Result<()> {
    let cluster = Cluster::new()?;
    for name in ["nodes.yaml", "pods.yaml", "web.yaml"] {
        cluster.write_example(name)?;
    }
    let agent = cluster.start_agent(&cluster.nodes[0], &AgentOptions::default())?;
    assert_eq!(refused(&agent)?, Vec::<String>::new());
    let services: Value = serde_json::from_str(&agent.view("service list -o json")?)?;
    assert_eq!(services[0]["name"], "web");
    assert_eq!(services[0]["ports"].as_array().map(Vec::len), Some(2), "one port in two families");
    // The second document of nodes.yaml is in effect.
    let route = cluster.nodes[0].netns.run("ip route show 10.244.2.0/24")?;
    ensure!(route.contains("via 192.0.2.12"), "{route}");
    // A service without endpoints says so at once.
    for v6 in [false, true] {
        let failed = failure(&cluster.client, public_address(v6))?;
        assert_eq!(failed, Some(ErrorKind::ConnectionRefused));
    }
    Ok(())
}

#[test]
fn edits_take_effect_at_once_however_they_are_saved() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let path = shop.cluster.objects().join("slices.yaml");
    let texts = [slices_of(&shop, 0)?, slices_of(&shop, 1)?];
    for how in ["renamed", "overwritten", "backed up", "in pieces"] {
        for (backend, text) in texts.iter().enumerate() {
            match how {
                "renamed" => shop.cluster.write("slices.yaml", text)?,
                "overwritten" => std::fs::write(&path, text)?,
                "backed up" => {
                    std::fs::rename(&path, path.with_extension("yaml~"))?;
                    std::fs::write(&path, text)?;
                }
                _ => {
                    let mut file = std::fs::File::create(&path)?;
                    text.as_bytes().chunks(100).try_for_each(|piece| file.write_all(piece))?;
                }
            }
            only(&shop, &format!("b{backend}"), AT_ONCE).context(how)?;
        }
    }
    assert_eq!(refused(&shop.agents[0])?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_bad_document_is_refused_by_file_line_object_field_and_reason_and_costs_no_other() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let text = other_service("first", "10.96.0.21", "80", &shop)
        + &other_service("bad", "10.96.0.22", "70000", &shop)
        + &other_service("last", "10.96.0.23", "80", &shop);
    let line = 1 + text.lines().position(|line| line.contains("70000")).context("no such line")?;
    while_served(&shop, || {
        shop.cluster.write("three.yaml", &text)?;
        let place = format!("three.yaml:{line}: ");
        let words = [&place, "shop/bad", ": spec.ports[0].port: ", "expected", "70000", "it is not served"];
        refused_as(&shop.agents[0], &words)
    })?;
    for address in ["10.96.0.21:80", "10.96.0.23:80"] {
        assert_eq!(get(&shop.client.netns, address.parse()?)?.0, "b0", "{address}");
    }
    let list = shop.agents[0].view("service list")?;
    ensure!(list.contains("first"), "{list}");
    // The same words wherever an operator may look.
    let words = refused(&shop.agents[0])?.remove(0);
    ensure!(shop.agents[0].log().contains(&words), "not in the log: {words}");
    ensure!(shop.agents[0].view("status")?.contains(&words), "not in the status: {words}");
    let shown = shop.agents[0].view("service show shop/bad")?;
    ensure!(
        shown.contains(&words) && shown.contains("no port of it is served"),
        "not at the service: {shown}"
    );
    let metrics = shop.cluster.nodes[0].netns.run("curl -gsS http://127.0.0.1:10249/metrics")?;
    ensure!(metrics.contains("\nportolan_refused_documents 1\n"), "not in the metrics");
    // Mended, it serves, and nobody complains any more.
    shop.cluster.write("three.yaml", &text.replace("70000", "80"))?;
    wait_for_refusals(&shop.agents[0], 0)?;
    assert_eq!(get(&shop.client.netns, "10.96.0.22:80".parse()?)?.0, "b0");
    Ok(())
}

#[test]
fn the_last_good_version_keeps_serving_until_a_good_one_comes() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let good = [slices_of(&shop, 0)?, slices_of(&shop, 1)?];
    only(&shop, "b1", AT_ONCE)?;
    let broken: [(&str, &str, String, &[&str]); 4] = [
        ("slices.yaml", "bad address", good[0].replace("IPv4", "Ipv4"), &["web-ipv4", "addressType"]),
        ("slices.yaml", "no YAML", good[0].replacen("endpoints:", "endpoints: [", 1), &["slices.yaml:"]),
        ("service.yaml", "bad port", service("").replace("port: 80,", "port: none,"), &["shop/web", "none"]),
        ("service.yaml", "half a file", service("")[..service("").len() / 3].to_owned(), &["service.yaml"]),
    ];
    for (file, what, text, words) in broken {
        let before = std::fs::read_to_string(shop.cluster.objects().join(file))?;
        while_served(&shop, || {
            shop.cluster.write(file, &text)?;
            let told = || refused(&shop.agents[0]).ok().filter(|list| !list.is_empty());
            let list = poll(AT_ONCE, &format!("{what}: a refusal"), told)?.join("\n");
            for word in words.iter().chain(&["the last good version keeps serving"]) {
                ensure!(list.contains(word), "{what}: {word:?} is not in {list}");
            }
            Ok(())
        })
        .context(what)?;
        shop.cluster.write(file, &before)?;
        wait_for_refusals(&shop.agents[0], 0).context(what)?;
    }
    shop.cluster.write("slices.yaml", &good[0])?;
    only(&shop, "b0", AT_ONCE)
}

#[test]
fn what_is_deleted_is_served_no_more() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let slices = slices_of(&shop, 0)?;
    let objects = shop.cluster.objects();
    let (client, to) = (&shop.client.netns, cluster_address(false));
    std::fs::remove_file(objects.join("slices.yaml"))?;
    let refused = || (failure(client, to).ok()? == Some(ErrorKind::ConnectionRefused)).then_some(());
    poll(AT_ONCE, "without endpoints clients are refused", refused)?;
    std::fs::remove_file(objects.join("service.yaml"))?;
    let gone = || (shop.agents[0].view("service list -o json").ok()?.trim() == "[]").then_some(());
    poll(AT_ONCE, "the service is gone", gone)?;
    assert_ne!(failure(client, to)?, None, "its address leads nowhere");
    let listing = run(std::process::Command::new("bpftool")
        .args(["-j", "map", "dump", "pinned"])
        .arg(shop.agents[0].pins().join("FRONTENDS_V4")))?;
    let frontends: Value = serde_json::from_str(&listing).with_context(|| listing.clone())?;
    // What is left marks the addresses of this node and the other.
    ensure!(frontends.as_array().is_some_and(|list| list.len() <= 2), "{listing}");
    shop.cluster.write("all.yaml", &(service("") + "---\n" + &slices))?;
    poll(AT_ONCE, "it serves again, from another file", || get(client, to).ok()).map(drop)
}

#[test]
fn other_kinds_and_other_files_are_none_of_its_business() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let objects = shop.cluster.objects();
    shop.cluster.write(
        "others.yaml",
        "# Nothing but a comment.\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n---\n\
         apiVersion: example.org/v1\nkind: Service\nmetadata: {name: not-ours}\n---\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: text}\ndata:\n  a: |\n    kind: Service\n",
    )?;
    std::fs::write(objects.join("notes.txt"), "kind: [")?;
    std::fs::write(objects.join(".slices.yaml.swp"), [0, 159, 146, 150])?;
    std::fs::write(objects.join("web.yaml~"), "kind: [")?;
    std::fs::create_dir(objects.join("directory.yaml"))?;
    symlink("nowhere", objects.join("dangling.yaml"))?;
    // What is written last is read last.
    shop.cluster.write("zz.yaml", &other_service("zz", "10.96.0.30", "80", &shop))?;
    poll(AT_ONCE, "the service in the last file", || {
        get(&shop.client.netns, "10.96.0.30:80".parse().ok()?).ok()
    })?;
    assert_eq!(refused(&shop.agents[0])?, Vec::<String>::new());
    let services: Value = serde_json::from_str(&shop.agents[0].view("service list -o json")?)?;
    assert_eq!(services.as_array().map(Vec::len), Some(2), "{services}");
    Ok(())
}

/// Ten levels of ten references each: 10^10 strings if anybody expands it.
fn bomb() -> String {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        text += &format!("a{level}: &a{level} [{inner}]\n");
    }
    text + "kind: Service\napiVersion: v1\nmetadata: {name: bomb, namespace: shop, labels: *a9}\n"
}

#[test]
fn files_that_no_editor_writes_are_refused_while_everything_serves() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let objects = shop.cluster.objects();
    while_served(&shop, || {
        let huge = std::fs::File::create(objects.join("huge.yaml"))?;
        huge.set_len(17 << 20)?;
        drop(huge);
        std::fs::write(objects.join("binary.yaml"), [0, 159, 146, 150, 10, 0])?;
        std::fs::write(objects.join("bomb.yaml"), bomb())?;
        std::fs::write(objects.join("deep.yaml"), "[".repeat(1 << 20))?;
        symlink("loop.yaml", objects.join("loop.yaml"))?;
        // Whoever opens this to read waits for a writer.
        run(std::process::Command::new("mkfifo").arg(objects.join("pipe.yaml")))?;
        let list = poll(LOOKED_FOR, "refusals of all six", || {
            let list = refused(&shop.agents[0]).ok()?;
            let named = |name| list.iter().any(|refusal| refusal.contains(name));
            ["huge.yaml", "binary.yaml", "bomb.yaml", "deep.yaml", "loop.yaml", "pipe.yaml"]
                .into_iter()
                .all(named)
                .then_some(list)
        })
        .with_context(|| format!("{:?}", refused(&shop.agents[0])))?;
        let whole = list.join("\n");
        ensure!(whole.contains("not UTF-8") && whole.contains("MiB"), "{whole}");
        Ok(())
    })?;
    // And edits still take effect at once.
    shop.publish(|_| None)?;
    let (client, to) = (&shop.client.netns, cluster_address(false));
    let refused = || (failure(client, to).ok()? == Some(ErrorKind::ConnectionRefused)).then_some(());
    poll(AT_ONCE, "without endpoints clients are refused", refused)
}

#[test]
fn the_first_file_by_name_owns_what_two_files_define() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let texts = [slices_of(&shop, 0)?, slices_of(&shop, 1)?];
    only(&shop, "b1", AT_ONCE)?;
    while_served(&shop, || {
        // `slices.yaml` has `b1`, and comes after this by name.
        shop.cluster.write("another.yaml", &texts[0])?;
        only(&shop, "b0", AT_ONCE)?;
        let list = wait_for_refusals(&shop.agents[0], 2)?.join("\n");
        for word in ["slices.yaml:", "another.yaml:", "already defines it", "the other one is served"] {
            ensure!(list.contains(word), "{word:?} is not in {list}");
        }
        std::fs::remove_file(shop.cluster.objects().join("another.yaml"))?;
        only(&shop, "b1", AT_ONCE)?;
        wait_for_refusals(&shop.agents[0], 0).map(drop)
    })
}

#[test]
fn a_file_that_is_being_written_takes_nothing_away() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let path = shop.cluster.objects().join("slices.yaml");
    let text = std::fs::read_to_string(&path)?;
    while_served(&shop, || {
        // As `kubectl get … > slices.yaml` does: emptied first, written later.
        let mut file = std::fs::File::create(&path)?;
        for piece in text.as_bytes().chunks(text.len() / 3 + 1) {
            file.write_all(piece)?;
            // The writer is slow; nobody waits for anything here.
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    })?;
    wait_for_refusals(&shop.agents[0], 0).map(drop)
}

#[test]
fn a_directory_that_goes_and_comes_back_interrupts_nothing() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let (objects, away) = (shop.cluster.objects(), shop.cluster.directory().join("away"));
    let texts = [slices_of(&shop, 0)?, slices_of(&shop, 1)?];
    only(&shop, "b1", AT_ONCE)?;
    while_served(&shop, || {
        std::fs::rename(&objects, &away)?;
        refused_as(&shop.agents[0], &["objects", "cannot be listed", "the last good version keeps serving"])?;
        std::fs::create_dir(&objects)?;
        let copied = std::fs::read_dir(&away)?.flatten().filter(|entry| entry.file_name() != "slices.yaml");
        for entry in copied {
            // Into place all at once: an empty directory would mean that nothing is wanted.
            std::fs::copy(entry.path(), objects.join(entry.file_name()))?;
        }
        Ok(())
    })?;
    shop.cluster.write("slices.yaml", &texts[0])?;
    only(&shop, "b0", LOOKED_FOR)?;
    wait_for_refusals(&shop.agents[0], 0)?;
    // From now on it is watched again, not only looked at from time to time.
    shop.cluster.write("slices.yaml", &texts[1])?;
    only(&shop, "b1", AT_ONCE)
}

#[test]
fn a_mounted_config_map_is_followed_when_its_symlink_moves() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let (objects, outside) = (shop.cluster.objects(), shop.cluster.directory().join("versions"));
    std::fs::create_dir(&outside)?;
    let texts = [slices_of(&shop, 0)?, slices_of(&shop, 1)?];
    for (number, text) in texts.iter().enumerate() {
        let version = objects.join(format!("..version{number}"));
        std::fs::create_dir(&version)?;
        std::fs::write(version.join("slices.yaml"), text)?;
    }
    let point_at = |number: usize| -> Result<()> {
        symlink(format!("..version{number}"), objects.join("..fresh"))?;
        Ok(std::fs::rename(objects.join("..fresh"), objects.join("..data"))?)
    };
    point_at(0)?;
    std::fs::remove_file(objects.join("slices.yaml"))?;
    symlink("..data/slices.yaml", objects.join("slices.yaml"))?;
    only(&shop, "b0", LOOKED_FOR)?;
    while_served(&shop, || {
        point_at(1)?;
        only(&shop, "b1", LOOKED_FOR)
    })
}
