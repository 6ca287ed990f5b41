//! What continuous availability costs: opens and closes of persistent handles beside durable ones,
//! and small reads and writes beside the same with write-through, in one run with one server; and
//! opens and closes of durable handles at Samba, if it is installed, which has no persistent ones.
//!
//! Writes `target/bench/failover.json` and prints a table. Each load is run in turns on all
//! shares; the best turn of each counts. The argument is how many seconds a turn takes (1).
//! `TMPDIR` says where the shares are.

use std::{
    env, fs,
    io::{Read, Write},
    net::TcpStream,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use block_io::File;
use bulkhead_tests::{
    process::free_port,
    samba::{self, Samba},
    smbd::{PASSWORD, Smbd, USER},
};
use serde_json::{Value, json};
use smb_client::{Client, ConnectOptions, Create, Login, OpenOptions, Tree};

const TURNS: usize = 3;
const BLOCKS: u64 = 16_384;
const SHARES: &str = "[[share]]\nname = \"ca\"\npath = \"files\"\nusers = [\"admin\"]\n\
                      continuously_available = true\n\
                      [[share]]\nname = \"plain\"\npath = \"files\"\nusers = [\"admin\"]";

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Clone, Copy, PartialEq)]
enum Load {
    OpenClose(usize),
    Read,
    Write,
}

const LOADS: [(&str, Load); 4] = [
    ("open+close QD1", Load::OpenClose(1)),
    ("open+close QD8", Load::OpenClose(8)),
    ("4 KiB random read QD32", Load::Read),
    ("4 KiB random write-through QD32", Load::Write),
];

/// Operations a second.
async fn rate(tree: &Tree, share: &str, load: Load, time: Duration) -> Outcome<f64> {
    let through = OpenOptions { write_through: true, ..OpenOptions::create(Create::OpenOrNew) };
    let depth = if let Load::OpenClose(depth) = load { depth } else { 32 };
    let file = match load {
        Load::OpenClose(_) => None,
        _ => Some(Arc::new(tree.open(&format!("{share}.disk"), through).await?)),
    };
    let (done, since) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut tasks = Vec::new();
    for task in 0..depth as u64 {
        let (tree, file, done) = (tree.clone(), file.clone(), done.clone());
        let name = format!("{share}-{task}");
        tasks.push(tokio::spawn(async move {
            let mut at = task.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut block = [task as u8; 4096];
            while since.elapsed() < time {
                at ^= at << 13;
                at ^= at >> 7;
                at ^= at << 17;
                let offset = at % BLOCKS * 4096;
                match (&file, load) {
                    (Some(file), Load::Read) => drop(file.read_at(offset, &mut block).await?),
                    (Some(file), _) => file.write_at(offset, &block).await?,
                    (None, _) => {
                        let open = tree.open(&name, OpenOptions::create(Create::OpenOrNew)).await?;
                        File::close(&open).await?;
                    }
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    let rate = done.load(Ordering::Relaxed) as f64 / since.elapsed().as_secs_f64();
    if let Some(file) = file {
        File::close(&*file).await?;
    }
    Ok(rate)
}

/// A number of the metrics page.
fn metric(port: u16, name: &str) -> Outcome<f64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    let name = format!("bulkhead_smbd_{name} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&name));
    Ok(line.ok_or("no such metric")?.trim().parse()?)
}

async fn bench(time: Duration) -> Outcome<Value> {
    let port = free_port();
    let options = format!("signing = \"enabled\"\nmetrics = \"127.0.0.1:{port}\"");
    let server = Smbd::start(&options, SHARES);
    let login = ConnectOptions::new("127.0.0.1", server.port(), Login::new(USER, PASSWORD));
    let session = Client::connect(login).await?;
    let trees = [session.tree("plain").await?, session.tree("ca").await?];
    for (tree, share) in trees.iter().zip(["plain", "ca"]) {
        let disk = tree.open(&format!("{share}.disk"), OpenOptions::create(Create::New)).await?;
        for at in 0..BLOCKS / 256 {
            disk.write_at(at << 20, &vec![1; 1 << 20]).await?;
        }
        File::close(&disk).await?;
    }
    let samba = Samba::start(
        "durable handles = yes\nkernel oplocks = no",
        "posix locking = no\n\
        kernel share modes = no",
    );
    let theirs = match &samba {
        Some(samba) => {
            let login = Login::new(samba::USER, samba::PASSWORD);
            let options = ConnectOptions::new("127.0.0.1", samba.port(), login);
            Some(Client::connect(options).await?.tree("vms").await?)
        }
        None => None,
    };
    let mut rows = Vec::new();
    for (name, load) in LOADS {
        let (mut best, mut pairs, mut commits) = ([0.0f64; 2], 0.0, 0.0);
        let mut best_of_theirs = None;
        for _ in 0..TURNS {
            for (at, share) in ["plain", "ca"].into_iter().enumerate() {
                let before = metric(port, "state_commits_total")?;
                let since = Instant::now();
                let rate = rate(&trees[at], share, load, time).await?;
                if share == "ca" {
                    pairs += rate * since.elapsed().as_secs_f64();
                    commits += metric(port, "state_commits_total")? - before;
                }
                best[at] = best[at].max(rate);
            }
            if let (Some(tree), Load::OpenClose(_)) = (&theirs, load) {
                let rate = rate(tree, "samba", load, time).await?;
                best_of_theirs = Some(rate.max(best_of_theirs.unwrap_or(0.0)));
            }
        }
        let ratio = best[1] / best[0];
        println!(
            "{name:<34} {:>10.0}/s plain {:>10.0}/s CA   {ratio:.2}   {:.3} commits each{}",
            best[0],
            best[1],
            commits / pairs,
            best_of_theirs.map_or(String::new(), |rate| format!("   {rate:.0}/s Samba"))
        );
        rows.push(json!({
            "load": name, "plain_per_s": best[0], "ca_per_s": best[1], "ratio": ratio,
            "commits_each": commits / pairs, "samba_per_s": best_of_theirs,
        }));
    }
    Ok(json!({ "seconds": time.as_secs_f64(), "turns": TURNS, "rows": rows }))
}

fn main() -> ExitCode {
    let seconds = env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1.0);
    let run = || -> Outcome<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let result = runtime.block_on(bench(Duration::from_secs_f64(seconds)))?;
        fs::create_dir_all("target/bench")?;
        fs::write("target/bench/failover.json", serde_json::to_string_pretty(&result)?)?;
        Ok(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-failover: {error}");
            ExitCode::FAILURE
        }
    }
}
