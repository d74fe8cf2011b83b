//! Host ports by SCTP (RFC 9260), of which the kernel need only know how to
//! translate it: associations are opened by packets made here.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use netns_harness::Netns;
use rustix::net::{AddressFamily, SocketType, ipproto, socket};
use serde_json::json;

use crate::portmap::{BACKENDS, Stage, TIME, portmap};

const CLIENT: u16 = 40_000;
const HOST_PORT: u16 = 9999;
const CONTAINER_PORT: u16 = 99;

#[test]
fn a_port_leads_into_the_container_by_sctp() {
    for backend in BACKENDS {
        let stage = Stage::new("cni-sctp");
        let (node, outside) = (&stage.node, &stage.outside);
        let mapping = json!([{ "hostPort": HOST_PORT, "containerPort": CONTAINER_PORT, "protocol": "sctp" }]);
        let portmap = portmap(node, backend, mapping);
        let pod = node.pod("a");
        let prev = node.add("a", &pod).result();
        portmap.add("a", &pod, &prev).result();
        portmap.check("a", &pod, &prev).result();
        let hosts = [(node.host.ip4(), outside.ip4()), (node.host.ip6(), outside.ip6())];
        let sockets = hosts.map(|(host, _)| (Sctp::new(outside, host), Sctp::new(&pod, host)));

        for ((host, from), (client, server)) in hosts.into_iter().zip(&sockets) {
            client.send(host, &Packet::init(CLIENT, HOST_PORT));
            let (source, init) = server.receive().unwrap_or_else(|| panic!("{backend}: {host}: no INIT"));
            assert_eq!((source, &init), (from, &Packet::init(CLIENT, CONTAINER_PORT)), "{backend}");
            server.send(source, &init.ack());
            let (source, ack) = client.receive().unwrap_or_else(|| panic!("{backend}: {host}: no answer"));
            assert_eq!((source, ack), (host, Packet::init(CLIENT, HOST_PORT).ack()), "{backend}");
        }

        portmap.del("a", &pod, &prev).result();
        for ((host, _), (client, server)) in hosts.into_iter().zip(&sockets) {
            // Another port, so that it is another association.
            client.send(host, &Packet::init(CLIENT + 1, HOST_PORT));
            assert_eq!(server.receive(), None, "{backend}: {host} after DEL");
        }
    }
}

/// INIT or its acknowledgement, without options.
#[derive(Clone, Debug, PartialEq)]
struct Packet {
    from: u16,
    to: u16,
    verification_tag: u32,
    chunk_type: u8,
    initiate_tag: u32,
}

impl Packet {
    const INIT: u8 = 1;
    const INIT_ACK: u8 = 2;

    fn init(from: u16, to: u16) -> Packet {
        Packet { from, to, verification_tag: 0, chunk_type: Packet::INIT, initiate_tag: 0x5eed }
    }

    fn ack(&self) -> Packet {
        Packet {
            from: self.to,
            to: self.from,
            verification_tag: self.initiate_tag,
            chunk_type: Packet::INIT_ACK,
            initiate_tag: 0xacce,
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.from.to_be_bytes());
        bytes.extend(self.to.to_be_bytes());
        bytes.extend(self.verification_tag.to_be_bytes());
        bytes.extend([0; 4]);
        // Type, flags, length; tag; window; streams out and in; the first TSN.
        bytes.extend([self.chunk_type, 0, 0, 20]);
        bytes.extend(self.initiate_tag.to_be_bytes());
        bytes.extend(65_536_u32.to_be_bytes());
        bytes.extend([0, 1, 0, 1]);
        bytes.extend(1_u32.to_be_bytes());
        let checksum = crc32c(&bytes);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// With a checksum that holds, or it is not one.
    fn parse(bytes: &[u8]) -> Packet {
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let packet = Packet {
            from: (word(0) >> 16) as u16,
            to: word(0) as u16,
            verification_tag: word(4),
            chunk_type: bytes[12],
            initiate_tag: word(16),
        };
        assert_eq!(packet.to_bytes(), bytes, "{packet:?}");
        packet
    }
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}

/// All SCTP that comes to a namespace.
struct Sctp {
    /// A raw one: std has no other type for it.
    socket: UdpSocket,
    v4: bool,
}

impl Sctp {
    /// Of that address's family.
    fn new(netns: &Netns, family: IpAddr) -> Sctp {
        let v4 = family.is_ipv4();
        let domain = if v4 { AddressFamily::INET } else { AddressFamily::INET6 };
        let open = || socket(domain, SocketType::RAW, Some(ipproto::SCTP)).unwrap();
        let socket = UdpSocket::from(netns.enter(open).unwrap());
        socket.set_read_timeout(Some(TIME)).unwrap();
        Sctp { socket, v4 }
    }

    fn send(&self, to: IpAddr, packet: &Packet) {
        self.socket.send_to(&packet.to_bytes(), SocketAddr::new(to, 0)).unwrap();
    }

    fn receive(&self) -> Option<(IpAddr, Packet)> {
        let mut buffer = [0; 200];
        let (length, from) = self.socket.recv_from(&mut buffer).ok()?;
        // A raw socket gives IPv4's header as well, and not IPv6's.
        let header = if self.v4 { usize::from(buffer[0] & 0xf) * 4 } else { 0 };
        Some((from.ip(), Packet::parse(&buffer[header..length])))
    }
}
