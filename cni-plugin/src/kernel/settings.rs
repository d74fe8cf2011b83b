use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use weft::model::{IfName, Mac};

use super::{Kernel, Link, change_link, named, with_flags};
use crate::protocol::error::Result;

/// What can be set of any link, as far as it is present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub mac: Option<Mac>,
    pub promiscuous: Option<bool>,
    pub mtu: Option<u32>,
    pub all_multicast: Option<bool>,
    pub tx_queue_len: Option<u32>,
}

impl Settings {
    pub fn is_empty(&self) -> bool {
        *self == Settings::default()
    }

    /// The same settings as the link has them now.
    pub fn now(&self, link: &Link) -> Settings {
        Settings {
            mac: self.mac.and(link.mac),
            promiscuous: self.promiscuous.and(Some(link.promiscuous)),
            mtu: self.mtu.and(Some(link.mtu)),
            all_multicast: self.all_multicast.and(Some(link.all_multicast)),
            tx_queue_len: self.tx_queue_len.and(Some(link.tx_queue_len)),
        }
    }
}

impl Kernel {
    /// All that can be set, and the first error of what cannot.
    pub fn set(&mut self, name: IfName, settings: &Settings) -> Result<()> {
        let mut changes: Vec<(String, LinkMessage)> = Vec::new();
        let mut change = |what: String, message| changes.push((format!("link {name} {what}"), message));
        if let Some(mtu) = settings.mtu {
            change(format!("mtu {mtu}"), with(name, LinkAttribute::Mtu(mtu)));
        }
        if let Some(mac) = settings.mac {
            change(format!("address {mac}"), with(name, LinkAttribute::Address(mac.0.to_vec())));
        }
        if let Some(on) = settings.promiscuous {
            change(format!("promisc {on}"), switched(name, LinkFlags::Promisc, on));
        }
        if let Some(on) = settings.all_multicast {
            change(format!("allmulticast {on}"), switched(name, LinkFlags::Allmulti, on));
        }
        if let Some(length) = settings.tx_queue_len {
            change(format!("txqueuelen {length}"), with(name, LinkAttribute::TxQueueLen(length)));
        }
        let (objects, messages): (Vec<_>, Vec<_>) = changes.into_iter().unzip();
        let requests = messages.into_iter().map(change_link).collect();
        self.all(requests, |i| objects[i].clone())
    }

    pub fn set_down(&mut self, name: IfName) -> Result<()> {
        self.all(vec![change_link(switched(name, LinkFlags::Up, false))], |_| format!("link {name} down"))
    }
}

fn with(name: IfName, attribute: LinkAttribute) -> LinkMessage {
    let mut message = named(name);
    message.attributes.push(attribute);
    message
}

fn switched(name: IfName, flag: LinkFlags, on: bool) -> LinkMessage {
    let mut message = with_flags(named(name), flag);
    if !on {
        message.header.flags = LinkFlags::empty();
    }
    message
}
