//! `weft demo`: a whole fabric on one machine, in namespaces of its own, shown
//! as it comes up, measured, hurt, and seen to heal.

mod cni;
mod drawing;
mod fabric;
mod heal;
mod measure;
mod voice;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use netns_harness::Lab;
use tokio::signal::unix::{Signal, SignalKind, signal};

use fabric::Fabric;
use voice::Voice;

/// See the fabric at work
///
/// Hosts, containers and real daemons in namespaces of this machine, pinged,
/// measured, hurt and healed. Your own network is not touched, and everything is
/// removed again.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// How many hosts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=16), value_name = "2..16")]
    hosts: u8,

    /// How packets travel between the hosts.
    #[arg(long, value_enum, default_value_t = BackendChoice::Vxlan)]
    backend: BackendChoice,

    /// Give every container an IPv6 address as well.
    #[arg(long)]
    ipv6: bool,

    /// Keep the leases in a real etcd (package etcd-server) instead of the
    /// built-in store.
    #[arg(long)]
    etcd: bool,

    /// Leave everything up for a look around, until Ctrl-C.
    #[arg(long)]
    keep: bool,

    /// The CNI plugin. [default: weft-cni beside this program]
    #[arg(long, value_name = "FILE")]
    cni_bin: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BackendChoice {
    Vxlan,
    HostGw,
}

impl BackendChoice {
    fn name(self) -> &'static str {
        match self {
            BackendChoice::Vxlan => "vxlan",
            BackendChoice::HostGw => "host-gw",
        }
    }
}

/// Runs the demo to its end, or until SIGINT, SIGTERM or SIGHUP; either way all
/// it made is gone when this returns. If the process is killed, the lab's guard
/// cleans up.
pub async fn run(args: DemoArgs) -> anyhow::Result<()> {
    let plugin = cni::find(args.cni_bin.as_deref())?;
    // Leftovers stand only where a demo and its guard were both killed.
    if rustix::process::geteuid().is_root() {
        Lab::sweep()?;
    }
    let mut signals = Signals::new()?;
    let lab = Lab::new("demo")?;
    let story = tokio::task::spawn_blocking({
        let (lab, args) = (lab.clone(), args.clone());
        move || tell(&lab, &args, &plugin)
    });
    tokio::pin!(story);
    tokio::select! {
        told = &mut story => {
            let kept = told.context("the demo's thread")??;
            if args.keep {
                signals.any().await;
                println!();
            }
            drop(kept);
        }
        () = signals.any() => {
            lab.remove()?;
            // With its processes and namespaces gone the story ends at its next step.
            let _ = story.await;
            bail!("interrupted: everything is removed again");
        }
    }
    lab.remove()?;
    println!("Everything is removed again.");
    Ok(())
}

/// The whole story; returns what must stay alive for `--keep`.
fn tell(lab: &Lab, args: &DemoArgs, plugin: &Path) -> anyhow::Result<Fabric> {
    let voice = Voice::new();
    let store = if args.etcd { "etcd" } else { "the built-in store" };
    println!(
        "{} hosts, {}, leases from {store}; all in namespaces of their own.\n",
        args.hosts,
        args.backend.name()
    );
    let fabric = Fabric::build(lab, args, plugin, &voice)?;
    let matrix = measure::every_pair(&fabric, &voice)?;
    let figures = measure::figures(&fabric, &voice)?;
    let healed = heal::show(&fabric, &voice)?;

    println!("\n{}", drawing::map(&fabric));
    println!("{}\n", drawing::hosts(&fabric));
    println!("{}\n", drawing::pings(&fabric, &matrix));
    println!("{}\n", drawing::figures(&figures, &healed));
    println!("{}", if args.keep { drawing::look_around(&fabric) } else { drawing::what_next() });
    Ok(fabric)
}

/// The signals that end the demo.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> anyhow::Result<Signals> {
        let hook = |kind| signal(kind).context("cannot watch for signals");
        Ok(Signals([
            hook(SignalKind::interrupt())?,
            hook(SignalKind::terminate())?,
            hook(SignalKind::hangup())?,
        ]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
