//! `weft status`: what this node holds, whom it is joined to, and whether the
//! kernel agrees.

mod live;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use comfy_table::{Table, presets};

use super::printable;
use crate::daemon::admin;
use crate::daemon::status::{PeerStatus, Status};

/// Show this node's lease, its peers and the store
///
/// With the state of each peer in the kernel, looked up afresh. Exits with 1
/// where something is not as it should be.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Socket of the daemon.
    #[arg(long, env = "WEFT_ADMIN_SOCKET", default_value = admin::SOCKET, value_name = "PATH")]
    admin_socket: PathBuf,

    /// As JSON; with --watch, one object a line.
    #[arg(long)]
    json: bool,

    /// Look again so often, until Ctrl-C: redrawn in place on a terminal, a line
    /// for each change elsewhere. [default: 2]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
          value_parser = clap::value_parser!(u32).range(1..=86400))]
    watch: Option<u32>,
}

pub async fn run(args: StatusArgs) -> anyhow::Result<()> {
    if let Some(seconds) = args.watch {
        return live::run(&args.admin_socket, Duration::from_secs(seconds.into()), args.json).await;
    }
    let status = admin::ask(&args.admin_socket).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", text(&status));
    }
    if let Some(trouble) = status.trouble() {
        anyhow::bail!("{trouble}");
    }
    Ok(())
}

fn text(status: &Status) -> String {
    let mut facts = table();
    let subnets = status.lease.subnets.join(", ");
    facts.add_row(["subnet".to_owned(), format!("{subnets} ({})", status.lease.state)]);
    facts.add_row(["network".to_owned(), status.networks.join(", ")]);
    facts.add_row(["backend".to_owned(), format!("{}, MTU {}", status.backend, status.mtu)]);
    facts.add_row([
        "this node".to_owned(),
        format!("{} on {}", status.node.public_ips.join(", "), status.node.uplink),
    ]);
    if let Some(admitted) = status.guard.admitted {
        let dropped = status.guard.dropped;
        facts.add_row([
            "guard".to_owned(),
            format!("{admitted} addresses may send; {dropped} packets of others dropped"),
        ]);
    }
    let store = if status.store.connected { "connected" } else { "AWAY" };
    facts.add_row(["store".to_owned(), format!("{} ({store})", status.store.name)]);
    let kernel = &status.kernel;
    let sync = if kernel.synced { "in sync" } else { "NOT IN SYNC" };
    facts.add_row([
        "kernel".to_owned(),
        format!("{sync}; {} changes made, {} of them repairs", kernel.changes, kernel.repairs),
    ]);
    let mut out = format!("{facts}\n\n{}\n", peers(&status.peers));
    let fights = kernel.fights.iter().map(|fight| format!("{}: undone {} times", fight.object, fight.count));
    let fights: Vec<_> = fights.collect();
    for line in status.store.bad_records.iter().chain(&kernel.failures).chain(&status.traffic).chain(&fights)
    {
        out.push_str(&format!("! {}\n", printable(line)));
    }
    out
}

fn peers(peers: &[PeerStatus]) -> Table {
    let mut out = table();
    out.set_header(["peer", "reached at", "backend", "in the kernel"]);
    for peer in peers {
        let state = match (&peer.rejected, peer.missing.as_slice()) {
            (Some(reason), _) => format!("left out: {}", printable(reason)),
            (None, []) => "ok".to_owned(),
            (None, missing) => format!("missing {}", missing.join(", ")),
        };
        out.add_row([peer.subnets.join(", "), peer.public_ips.join(", "), printable(&peer.backend), state]);
    }
    out
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}
