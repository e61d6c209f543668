//! Packets whose headers are not in the linear part of the kernel's buffer, as some drivers deliver them.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use aya::programs::TcAttachType;
use portolan_abi::counter;
use portolan_core::{Hook, V4, V6};
use portolan_tests::packet::build::{Packet, proto};
use portolan_tests::packet::family::Tested;
use portolan_tests::packet::fixture::site::Site;
use portolan_tests::packet::host::Machine;
use portolan_tests::packet::kernel::{Kernel, in_namespace};

/// More than a page, below which the kernel keeps a packet in one piece.
const DATA: usize = 6000;

/// Sends a frame from an interface of this thread's namespace, its Ethernet header alone in the linear part.
fn send_paged(interface: &str, frame: &[u8]) -> io::Result<()> {
    // SAFETY: no pointer is passed; the descriptor is new and ours.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let on = 1u32;
    // SAFETY: the option is a plain integer of the size that is given.
    let set = unsafe {
        let size = size_of_val(&on) as libc::socklen_t;
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const on).cast(),
            size,
        )
    };
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: the name is a string that ends with zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if set != 0 || index == 0 {
        return Err(io::Error::last_os_error());
    }
    // struct virtio_net_hdr: flags, gso_type, hdr_len (the linear part), gso_size, csum_start, csum_offset.
    let mut message = vec![0u8; 10];
    message[2..4].copy_from_slice(&14u16.to_ne_bytes());
    message.extend(frame);
    // SAFETY: every bit pattern is valid for the address; the buffers live during the call, with their sizes.
    let sent = unsafe {
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        (to.sll_family, to.sll_ifindex, to.sll_halen) = (libc::AF_PACKET as u16, index as i32, 6);
        let size = size_of_val(&to) as libc::socklen_t;
        let (fd, bytes) = (socket.as_raw_fd(), message.as_ptr().cast());
        libc::sendto(fd, bytes, message.len(), 0, (&raw const to).cast(), size)
    };
    if sent as usize == message.len() { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn run<F: Tested>(site: &Site) {
    in_namespace(|| {
        let mut kernel = Kernel::load();
        Machine::<F>::change(&mut kernel, &site.serving(&[(site.b.addr, 8080)]));
        for interface in ["pod-a", "pod-a-x"] {
            let set =
                std::process::Command::new("ip").args(["link", "set", interface, "mtu", "9000"]).status();
            assert!(set.expect("iproute2 is installed").success());
        }
        let program = kernel.program(Hook::Pod);
        program.attach("pod-a", TcAttachType::Ingress).expect("the program attaches");
        let datagram = Packet::udp((site.a.addr, 40_001), (site.vip, 80)).data(&[0x55; DATA]);
        let frame = site.from_a(datagram).bytes();
        for count in 1..=3 {
            send_paged("pod-a-x", &frame).expect("a packet can be sent");
            let deadline = Instant::now() + Duration::from_secs(5);
            let counted = |kernel: &Kernel| kernel.counters()[counter::TO_POD as usize];
            while counted(&kernel) < count && Instant::now() < deadline {
                std::thread::yield_now();
            }
            let names = kernel.counters();
            assert_eq!(names[counter::TO_POD as usize], count, "{names:?}");
            assert_eq!(kernel.opened(), 1, "the flow is known from the first packet on");
        }
        assert_eq!(Machine::<F>::flows(&kernel).len(), 2);
        assert!(Machine::<F>::flows(&kernel).keys().all(|key| key.proto == u32::from(proto::UDP)));
    });
}

#[test]
fn a_flow_of_packets_without_linear_headers_is_recognised_over_ipv4() {
    run::<V4>(&Site::v4());
}

#[test]
fn a_flow_of_packets_without_linear_headers_is_recognised_over_ipv6() {
    run::<V6>(&Site::v6());
}
