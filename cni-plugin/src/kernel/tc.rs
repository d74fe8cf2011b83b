//! Traffic control: token buckets at a link's root, and sending on what a link
//! receives to another one (tc-tbf(8), tc-u32(8), tc-mirred(8); the structures are
//! those of include/uapi/linux/pkt_sched.h).

use netlink_packet_core::{DefaultNla, Nla, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};
use weft::kernel::netlink::{Cause, Request};
use weft::model::{IfName, Mac};

use super::{Kernel, named, with_flags};
use crate::protocol::error::Result;

/// The parameters of a token bucket filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that may wait for tokens.
    pub limit: u32,
    /// The time that a full bucket takes to fill, in ticks of 64 ns.
    pub buffer: u32,
}

const ROOT_HANDLE: TcHandle = TcHandle { major: 1, minor: 0 };
const INGRESS_HANDLE: TcHandle = TcHandle { major: 0xffff, minor: 0 };
const FLOW: TcHandle = TcHandle { major: 1, minor: 1 };
const TBF: &str = "tbf";
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
/// Priority 1 and, in network order, the protocol ETH_P_ALL.
const FILTER_INFO: u32 = 1 << 16 | (libc::ETH_P_ALL as u16).to_be() as u32;

impl Kernel {
    /// An IFB device, up: what it is sent it sends back to where it came from.
    /// False when a link of that name exists.
    pub fn create_ifb(&mut self, name: IfName, mac: Mac, mtu: u32) -> Result<bool> {
        let mut message = with_flags(named(name), LinkFlags::Up);
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        message.attributes.push(LinkAttribute::Mtu(mtu));
        message.attributes.push(LinkAttribute::TxQueueLen(0));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
        match self.0.request(Request::create(RouteNetlinkMessage::NewLink(message))) {
            Ok(()) => Ok(true),
            Err(cause) if cause.errno() == Some(libc::EEXIST) => Ok(false),
            Err(cause) => Err(cause.of(format!("ifb {name}")).into()),
        }
    }

    /// Make a token bucket the root of what the link sends.
    pub fn add_token_bucket(&mut self, link: u32, bucket: &TokenBucket) -> Result<()> {
        let mut message = qdisc(link, TcHandle::ROOT);
        message.header.handle = ROOT_HANDLE;
        message.attributes = vec![TcAttribute::Kind(TBF.to_owned()), TcAttribute::Options(bucket.options())];
        let request = Request::create(RouteNetlinkMessage::NewQueueDiscipline(message));
        self.0
            .request(request)
            .map_err(|cause| cause.of(format!("token bucket of link number {link}")).into())
    }

    /// The token bucket at the link's root, if that is what stands there. All are
    /// dumped: asked for one, the kernel tells everybody who listens.
    pub fn token_bucket(&mut self, link: u32) -> Result<Option<TokenBucket>> {
        let message = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let answers = self.0.dump(Request::dump(message)).map_err(|cause| cause.of("qdiscs"))?;
        Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(message)
                if message.header.index == link as i32 && message.header.parent == TcHandle::ROOT =>
            {
                TokenBucket::of(message)
            }
            _ => None,
        }))
    }

    pub fn delete_root_qdisc(&mut self, link: u32) -> Result<()> {
        self.delete_qdisc(link, TcHandle::ROOT)
    }

    /// Send everything that link `from` receives out by link `to`.
    pub fn redirect(&mut self, from: u32, to: u32) -> Result<()> {
        let failed = |cause: Cause| cause.of(format!("redirection of link number {from} to {to}"));
        let mut ingress = qdisc(from, TcHandle::INGRESS);
        ingress.header.handle = INGRESS_HANDLE;
        ingress.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
        self.0.request(Request::create(RouteNetlinkMessage::NewQueueDiscipline(ingress))).map_err(failed)?;
        let filter = RouteNetlinkMessage::NewTrafficFilter(redirecting_filter(from, to));
        let Err(cause) = self.0.request(Request::create(filter)) else { return Ok(()) };
        self.delete_qdisc(from, TcHandle::INGRESS)?;
        Err(failed(cause).into())
    }

    fn delete_qdisc(&mut self, link: u32, parent: TcHandle) -> Result<()> {
        let request = Request::change(RouteNetlinkMessage::DelQueueDiscipline(qdisc(link, parent)));
        self.0.request(request).map_err(|cause| cause.of(format!("qdisc of link number {link}")).into())
    }
}

impl TokenBucket {
    /// `struct tc_tbf_qopt`: two rates of 12 bytes, limit, buffer, mtu.
    fn options(&self) -> Vec<TcOption> {
        let mut parameters = vec![0; 36];
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        parameters[8..12].copy_from_slice(&rate.to_ne_bytes());
        parameters[24..28].copy_from_slice(&self.limit.to_ne_bytes());
        parameters[28..32].copy_from_slice(&self.buffer.to_ne_bytes());
        let mut options = vec![TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parameters))];
        if u32::try_from(self.rate).is_err() {
            options.push(TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, self.rate.to_ne_bytes().to_vec())));
        }
        options
    }

    fn of(message: &TcMessage) -> Option<TokenBucket> {
        if !message.attributes.iter().any(|a| matches!(a, TcAttribute::Kind(kind) if kind == TBF)) {
            return None;
        }
        // Of a qdisc that the decoder does not know, the options are one attribute.
        let options = message.attributes.iter().find_map(|attribute| match attribute {
            TcAttribute::Options(options) => match options.as_slice() {
                [TcOption::Other(nla)] => Some(value(nla)),
                _ => None,
            },
            _ => None,
        })?;
        let mut bucket = None;
        let mut rate64 = None;
        for nla in NlasIterator::new(&options).filter_map(std::result::Result::ok) {
            match nla.kind() {
                TCA_TBF_PARMS => bucket = TokenBucket::of_parameters(nla.value()),
                TCA_TBF_RATE64 => rate64 = nla.value().try_into().ok().map(u64::from_ne_bytes),
                _ => {}
            }
        }
        let bucket = bucket?;
        Some(TokenBucket { rate: rate64.unwrap_or(bucket.rate), ..bucket })
    }

    fn of_parameters(bytes: &[u8]) -> Option<TokenBucket> {
        let number = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        Some(TokenBucket { rate: number(8)?.into(), limit: number(24)?, buffer: number(28)? })
    }
}

fn qdisc(link: u32, parent: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(link as i32);
    message.header.parent = parent;
    message
}

fn value(nla: &DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; nla.value_len()];
    nla.emit_value(&mut bytes);
    bytes
}

/// A u32 filter whose one key is true of every packet.
fn redirecting_filter(from: u32, to: u32) -> TcMessage {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    let options = [
        TcFilterU32Option::Selector(selector),
        TcFilterU32Option::ClassId(FLOW),
        TcFilterU32Option::Action(vec![action]),
    ];
    let mut message = qdisc(from, INGRESS_HANDLE);
    message.header.info = FILTER_INFO;
    message.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(options.into_iter().map(TcOption::U32).collect()),
    ];
    message
}
