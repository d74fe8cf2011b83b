//! How long a listing of leases takes by the number of records in a page, from a
//! real etcd, and from it by the daemon's own listing:
//!
//! ```text
//! cargo bench --bench listing
//! ```

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

#[path = "../tests/common/etcd.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod etcd;

use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions, Txn, TxnOp};
use weft::subnet::store::{EtcdConfig, EtcdStore, Store, TlsFiles};

use etcd::Etcd;

const SUBNETS: &str = "/coreos.com/network/subnets/";
const END: &str = "/coreos.com/network/subnets0";
const PAGES: [i64; 7] = [250, 500, 1_000, 2_000, 4_000, 8_000, 100_000];
const RUNS: usize = 5;

fn main() {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(
        async {
            println!(
                "milliseconds for all records, median of {RUNS}; kB in the largest answer; Store::snapshot"
            );
            print!("{:<8}", "records");
            PAGES.iter().for_each(|page| print!(" {page:>14}"));
            println!(" {:>9}", "snapshot");
            for records in [1_000, 10_000, 50_000] {
                row(records).await;
            }
        },
    );
}

async fn row(records: u32) {
    let etcd = Etcd::start();
    let client = Client::connect([&etcd.url], None).await.unwrap();
    fill(&client, records).await;
    let store = EtcdStore::new(EtcdConfig {
        endpoints: vec![etcd.url.clone()],
        prefix: "/coreos.com/network".into(),
        tls: TlsFiles::default(),
        credentials: None,
    })
    .unwrap();
    let (mut times, mut largest) = ([const { Vec::new() }; PAGES.len() + 1], [0; PAGES.len()]);
    for _ in 0..RUNS {
        for (at, page) in PAGES.into_iter().enumerate() {
            let (time, bytes) = read(&client, page).await;
            times[at].push(time);
            largest[at] = bytes;
        }
        let begun = Instant::now();
        assert_eq!(store.snapshot().await.unwrap().leases.len(), records as usize);
        times[PAGES.len()].push(begun.elapsed());
    }
    let mut medians = times.into_iter().map(|mut times| {
        times.sort_unstable();
        times[RUNS / 2].as_secs_f64() * 1e3
    });
    print!("{records:<8}");
    for bytes in largest {
        print!(" {:>7.1} {:>6}", medians.next().unwrap(), bytes / 1000);
    }
    println!(" {:>9.1}", medians.next().unwrap());
}

/// Page by page, each decoded and dropped.
async fn read(client: &Client, page: i64) -> (Duration, usize) {
    let begun = Instant::now();
    let (mut start, mut revision, mut largest) = (SUBNETS.as_bytes().to_vec(), 0, 0);
    loop {
        let options = GetOptions::new().with_range(END).with_limit(page).with_revision(revision);
        let mut kv = client.kv_client().max_decoding_message_size(64 << 20);
        let answer = kv.get(start, Some(options)).await.unwrap();
        revision = answer.header().unwrap().revision();
        largest = largest.max(answer.kvs().iter().map(|kv| kv.key().len() + kv.value().len() + 20).sum());
        if !answer.more() {
            return (begun.elapsed(), largest);
        }
        start = [answer.kvs().last().unwrap().key(), &[0]].concat();
    }
}

async fn fill(client: &Client, records: u32) {
    let numbers: Vec<u32> = (1..=records).collect();
    for some in numbers.chunks(100) {
        let puts: Vec<_> = some.iter().map(|&n| TxnOp::put(key(n), value(n), None)).collect();
        client.kv_client().txn(Txn::new().and_then(puts)).await.unwrap();
    }
}

fn key(n: u32) -> String {
    let [_, b, c, d] = n.to_be_bytes();
    format!("{SUBNETS}{}.{c}.{d}.0-24", 10 + b)
}

fn value(n: u32) -> String {
    let [_, b, c, d] = n.to_be_bytes();
    format!(
        r#"{{"PublicIP":"172.{}.{c}.{d}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:{b:02x}:{c:02x}:{d:02x}"}}}}"#,
        16 + b
    )
}
