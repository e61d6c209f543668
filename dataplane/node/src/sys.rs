//! The few system calls that aya has no function for: batches, link updates, plain look-ups by key.
//!
//! Layouts are those of `union bpf_attr` in the kernel's `include/uapi/linux/bpf.h`; they are stable ABI.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_DELETE_ELEM: u32 = 3;
const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;
const BPF_MAP_UPDATE_BATCH: u32 = 26;
const BPF_MAP_DELETE_BATCH: u32 = 27;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_UPDATE: u32 = 29;
const BPF_ITER_CREATE: u32 = 33;

/// Room for every attribute used here; the kernel takes any size as long as what it does not know is zero.
const ATTRIBUTE: usize = 128;

#[repr(C, align(8))]
struct Attribute<T> {
    fields: T,
}

/// Issues one `bpf` command.
fn bpf<T>(command: u32, fields: T) -> io::Result<i64> {
    const { assert!(size_of::<T>() <= ATTRIBUTE) };
    let mut attribute = Attribute { fields };
    // SAFETY: the attribute is a plain struct of the layout that the command documents, alive for the whole call;
    // pointers inside of it are valid for it by the callers' contracts.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attribute, size_of::<Attribute<T>>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Element {
    fn new<K, V>(map: BorrowedFd<'_>, key: *const K, value: *const V, flags: u64) -> Self {
        Self { map: map.as_raw_fd() as u32, pad: 0, key: key as u64, value: value as u64, flags }
    }
}

/// Reads a value; `None` if the key is not there. `V` is the map's value without padding.
pub(crate) fn lookup<K, V: Copy>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = std::mem::MaybeUninit::<V>::uninit();
    match bpf(BPF_MAP_LOOKUP_ELEM, Element::new(map, key, value.as_mut_ptr(), 0)) {
        // SAFETY: the kernel has filled the value.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a value.
pub(crate) fn update<K, V>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    bpf(BPF_MAP_UPDATE_ELEM, Element::new(map, key, value, 0)).map(drop)
}

/// Removes a key; whether it was there.
pub(crate) fn delete<K>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    match bpf(BPF_MAP_DELETE_ELEM, Element::new(map, key, std::ptr::null::<u8>(), 0)) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct Batch {
    cursor_in: u64,
    cursor_out: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Issues a batch command; the count that the kernel reached, and how it ended.
fn batch(command: u32, fields: Batch) -> (u32, io::Result<()>) {
    let mut attribute = Attribute { fields };
    // SAFETY: as in `bpf`; the kernel writes the count back, also on failure.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attribute, size_of::<Attribute<Batch>>()) };
    let status = if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    (attribute.fields.count, status)
}

/// Writes many elements; on failure says how many were written.
pub(crate) fn update_batch<K, V>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, io::Error)> {
    debug_assert_eq!(keys.len(), values.len());
    let fields = Batch {
        cursor_in: 0,
        cursor_out: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len() as u32,
        map: map.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    let (count, status) = batch(BPF_MAP_UPDATE_BATCH, fields);
    status.map_err(|error| (count as usize, error))
}

/// Removes many keys, those that are not there included.
pub(crate) fn delete_batch<K>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<()> {
    let mut rest = keys;
    while !rest.is_empty() {
        let fields = Batch {
            cursor_in: 0,
            cursor_out: 0,
            keys: rest.as_ptr() as u64,
            values: 0,
            count: rest.len() as u32,
            map: map.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        let (count, status) = batch(BPF_MAP_DELETE_BATCH, fields);
        match status {
            Ok(()) => return Ok(()),
            // The batch stops at a key that is not there: go on behind it.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                rest = rest.get(count as usize + 1..).unwrap_or_default();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Elements asked for at once. The kernel wants room for the largest bucket.
const DUMP: usize = 4096;

/// Words of a batch's cursor: a number for hash tables, a whole key for prefix tables.
const CURSOR: usize = 16;

/// Hands every element of a hash or prefix table to `each`, some at a time. What changes meanwhile may or may not be
/// among them.
pub(crate) fn dump<K: Copy, V: Copy>(map: BorrowedFd<'_>, mut each: impl FnMut(K, V)) -> io::Result<()> {
    const { assert!(size_of::<K>() <= CURSOR * 8) };
    let mut room = DUMP;
    let mut cursor = [0u64; CURSOR];
    let mut first = true;
    let (mut keys, mut values) = (Vec::<K>::with_capacity(room), Vec::<V>::with_capacity(room));
    loop {
        let mut next = [0u64; CURSOR];
        let fields = Batch {
            cursor_in: if first { 0 } else { (&raw const cursor) as u64 },
            cursor_out: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room as u32,
            map: map.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        let (count, status) = batch(BPF_MAP_LOOKUP_BATCH, fields);
        let done = match status {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 22 => {
                room *= 2;
                (keys, values) = (Vec::with_capacity(room), Vec::with_capacity(room));
                continue;
            }
            Err(error) => return Err(error),
        };
        // SAFETY: the kernel has filled the first `count` of both, which is at most the capacity.
        unsafe {
            keys.set_len(count as usize);
            values.set_len(count as usize);
        }
        keys.drain(..).zip(values.drain(..)).for_each(|(key, value)| each(key, value));
        if done {
            return Ok(());
        }
        cursor = next;
        first = false;
    }
}

#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Pins an object.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    bpf(BPF_OBJ_PIN, Pin { path: path.as_ptr() as u64, fd: fd.as_raw_fd() as u32, flags: 0 }).map(drop)
}

/// Opens a pinned object; `None` if there is none at the path.
pub(crate) fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = c_path(path)?;
    match bpf(BPF_OBJ_GET, Pin { path: path.as_ptr() as u64, fd: 0, flags: 0 }) {
        Ok(fd) => Ok(Some(owned(fd))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

/// Attaches a program to an interface of this network namespace at a tcx hook (kernel 6.6).
pub(crate) fn link_create_tcx(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let fields = LinkCreate {
        program: program.as_raw_fd() as u32,
        target: ifindex,
        attach_type,
        flags: 0,
        relative: 0,
        pad: 0,
        expected_revision: 0,
    };
    bpf(BPF_LINK_CREATE, fields).map(owned)
}

/// Attaches a program to a cgroup. Links of other owners stay, and run as well.
pub(crate) fn link_create_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let fields = LinkCreate {
        program: program.as_raw_fd() as u32,
        target: cgroup.as_raw_fd() as u32,
        attach_type,
        flags: 0,
        relative: 0,
        pad: 0,
        expected_revision: 0,
    };
    bpf(BPF_LINK_CREATE, fields).map(owned)
}

#[repr(C)]
struct NewIterator {
    link: u32,
    flags: u32,
}

/// A link for an iterator over all objects of its kind, by which it can be run.
pub(crate) fn link_create_iterator(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// `BPF_TRACE_ITER`.
    const ITERATOR: u32 = 28;
    let fields = LinkCreate {
        program: program.as_raw_fd() as u32,
        target: 0,
        attach_type: ITERATOR,
        flags: 0,
        relative: 0,
        pad: 0,
        expected_revision: 0,
    };
    bpf(BPF_LINK_CREATE, fields).map(owned)
}

/// Begins to run an iterator; what it writes is read from the descriptor. Where there is one list for each network
/// namespace, it runs over that of the calling thread.
pub(crate) fn iterate(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    bpf(BPF_ITER_CREATE, NewIterator { link: link.as_raw_fd() as u32, flags: 0 }).map(owned)
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old: u32,
}

/// Replaces the program of a link, whatever its kind, without a gap.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let fields =
        LinkUpdate { link: link.as_raw_fd() as u32, program: program.as_raw_fd() as u32, flags: 0, old: 0 };
    bpf(BPF_LINK_UPDATE, fields).map(drop)
}

#[repr(C)]
struct InfoQuery {
    fd: u32,
    len: u32,
    info: u64,
}

/// The interface a tcx link is attached to; 0 when the interface is gone.
pub(crate) fn link_ifindex(link: BorrowedFd<'_>) -> io::Result<u32> {
    link_info(link).map(|info| info[4])
}

/// The identity of the cgroup a link is attached to; 0 when the cgroup is gone.
pub(crate) fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    let words = |info: [u32; 16]| [info[4].to_ne_bytes(), info[5].to_ne_bytes()];
    let [[a, b, c, d], [e, f, g, h]] = link_info(link).map(words)?;
    Ok(u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
}

/// The identity of the program that a link runs.
pub(crate) fn link_program(link: BorrowedFd<'_>) -> io::Result<u32> {
    link_info(link).map(|info| info[2])
}

/// `struct bpf_link_info`: type, id, prog_id, padding, then for tcx: ifindex, attach type; for cgroups: 64 bits of
/// identity, attach type.
fn link_info(link: BorrowedFd<'_>) -> io::Result<[u32; 16]> {
    let mut info = [0u32; 16];
    let fields = InfoQuery {
        fd: link.as_raw_fd() as u32,
        len: size_of_val(&info) as u32,
        info: (&raw mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, fields)?;
    Ok(info)
}

/// The cookie of the calling thread's network namespace (kernel 5.14).
pub(crate) fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let (mut cookie, mut len) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `len` bytes to the word, which lives as long as the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Words that nobody can guess.
pub(crate) fn random() -> io::Result<[u32; 2]> {
    let mut words = [0u32; 2];
    // SAFETY: the buffer is ours and as long as said.
    let got = unsafe { libc::getrandom(words.as_mut_ptr().cast(), size_of_val(&words), 0) };
    // Requests of up to 256 bytes are never cut short (getrandom(2)).
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(words) }
}

/// Waits until every program run that has begun is over (`MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu`).
pub(crate) fn wait_for_readers() -> io::Result<()> {
    const GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes only integers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
