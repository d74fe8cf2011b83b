//! `weft status`: what this node holds, whom it is joined to, and whether the
//! kernel agrees.

mod live;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use comfy_table::{Table, presets};

use super::printable;
use crate::daemon::admin;
use crate::daemon::status::{PeerCount, PeerStatus, Status};

/// So many peers are listed, unless all are asked for.
const PEERS: usize = 50;
/// So many of one kind of trouble are listed.
const TROUBLES: usize = 10;

/// Show this node's lease, its peers and the store
///
/// With the state of each peer in the kernel, looked up afresh, those in trouble
/// first. Exits with 1 where something is not as it should be.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Socket of the daemon.
    #[arg(long, env = "WEFT_ADMIN_SOCKET", default_value = admin::SOCKET, value_name = "PATH")]
    admin_socket: PathBuf,

    /// As JSON, with all peers; with --watch, one object a line.
    #[arg(long)]
    json: bool,

    /// List all peers, and not 50 of them.
    #[arg(long)]
    all: bool,

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
    let take = (!args.json && !args.all).then_some(PEERS);
    let status = admin::ask(&args.admin_socket, take).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}{}", facts(&status), peers(&status, usize::MAX));
    }
    if let Some(trouble) = status.trouble() {
        anyhow::bail!("{trouble}");
    }
    Ok(())
}

/// This node, and what is wrong.
fn facts(status: &Status) -> String {
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
    let fights = kernel.fights.iter().map(|fight| {
        let by = if fight.suspects.is_empty() { "something else" } else { &fight.suspects.join(" or ") };
        format!("{}: undone {} times by {by}", fight.object, fight.count)
    });
    let mut out = format!("{facts}\n");
    for (lines, count) in [
        (status.store.bad_records.clone(), status.store.bad_record_count),
        (kernel.failures.clone(), kernel.failure_count),
        (fights.collect(), kernel.fight_count),
        (status.traffic.iter().chain(&status.guard.trouble).cloned().collect(), 0),
    ] {
        lines.iter().take(TROUBLES).for_each(|line| out.push_str(&format!("! {}\n", printable(line))));
        if count > TROUBLES {
            out.push_str(&format!("! … and {} more\n", count - TROUBLES));
        }
    }
    out
}

/// A line for each of those that were told of, `room` at the most, and what that
/// leaves out.
fn peers(status: &Status, room: usize) -> String {
    let PeerCount { total, missing, left_out, found, .. } = status.peer_count;
    let mut out = format!("\n{total} peers, {missing} missing in the kernel, {left_out} left out\n");
    let shown = &status.peers[..room.min(status.peers.len())];
    if !shown.is_empty() {
        let mut rows = table();
        rows.set_header(["peer", "reached at", "backend", "in the kernel"]);
        rows.add_rows(shown.iter().map(row));
        out.push_str(&format!("{rows}\n"));
    }
    if found > shown.len() {
        out.push_str(&format!("… and {} more: `weft status --all`\n", found - shown.len()));
    }
    out
}

fn row(peer: &PeerStatus) -> [String; 4] {
    let state = match (&peer.rejected, peer.missing.as_slice()) {
        (Some(reason), _) => format!("left out: {}", printable(reason)),
        (None, []) => "ok".to_owned(),
        (None, missing) => format!("missing {}", missing.join(", ")),
    };
    [peer.subnets.join(", "), peer.public_ips.join(", "), printable(&peer.backend), state]
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}
