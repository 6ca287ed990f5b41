//! What continuous availability costs: opens and closes of persistent handles beside durable ones,
//! and small reads and writes beside the same with write-through, in one run with one server; and
//! the same at Samba, if it is installed, with durable handles, for it has no persistent ones, and
//! with every write made durable before its answer (`sync always`).
//!
//! Writes `target/bench/failover.json` and prints a table. Each load is run in short turns on both
//! shares, which are over one folder and use the same open file, laid out before: what the machine
//! and its disk do meanwhile meets both. The ratio of all that was done counts; the quartiles of
//! the ratios of neighbouring turns show how much they swing. The argument is how many seconds a
//! turn takes (0.1). `TMPDIR` says where the shares are.

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
    port::Port,
    samba::{self, Samba},
    smbd::{PASSWORD, Smbd, USER},
};
use serde_json::{Value, json};
use smb_client::{Client, ConnectOptions, Create, Login, OpenOptions, RemoteFile, Share, Tree};

const PAIRS: usize = 80;
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

/// The file of the loads that read and write, for both shares at once.
async fn disk(tree: &Tree) -> Outcome<Arc<RemoteFile>> {
    let through = OpenOptions {
        write_through: true,
        share: Share::ReadWrite,
        ..OpenOptions::create(Create::OpenOrNew)
    };
    Ok(Arc::new(tree.open("disk", through).await?))
}

/// Lays the file out that is read and written.
async fn lay_out(tree: &Tree) -> Outcome<()> {
    let disk = tree.open("disk", OpenOptions::create(Create::New)).await?;
    for at in 0..BLOCKS / 256 {
        disk.write_at(at << 20, &vec![1; 1 << 20]).await?;
    }
    disk.flush().await?;
    Ok(File::close(&disk).await?)
}

/// Operations a second.
async fn rate(
    tree: &Tree,
    disk: Option<&Arc<RemoteFile>>,
    share: &str,
    load: Load,
    time: Duration,
) -> Outcome<f64> {
    let depth = if let Load::OpenClose(depth) = load { depth } else { 32 };
    let file = if let Load::OpenClose(_) = load { None } else { disk.cloned() };
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
    Ok(done.load(Ordering::Relaxed) as f64 / since.elapsed().as_secs_f64())
}

/// The quartiles of some figures.
fn spread(figures: &mut [f64]) -> (f64, f64, f64) {
    figures.sort_by(f64::total_cmp);
    let at = |quarter: usize| figures[(figures.len() - 1) * quarter / 4];
    (at(1), at(2), at(3))
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
    let reserved = Port::reserve();
    let port = reserved.number();
    let options = format!("signing = \"enabled\"\nmetrics = \"127.0.0.1:{port}\"");
    let server = Smbd::start(&options, SHARES);
    let login = ConnectOptions::new("127.0.0.1", server.port(), Login::new(USER, PASSWORD));
    let session = Client::connect(login).await?;
    let trees = [session.tree("plain").await?, session.tree("ca").await?];
    lay_out(&trees[0]).await?;
    let disks = [self::disk(&trees[0]).await?, self::disk(&trees[1]).await?];
    let samba = Samba::start(
        "durable handles = yes\nkernel oplocks = no",
        "posix locking = no\nkernel share modes = no\nsync always = yes",
    );
    let theirs = match &samba {
        Some(samba) => {
            let login = Login::new(samba::USER, samba::PASSWORD);
            let options = ConnectOptions::new("127.0.0.1", samba.port(), login);
            let tree = Client::connect(options).await?.tree("vms").await?;
            lay_out(&tree).await?;
            let disk = self::disk(&tree).await?;
            Some((tree, disk))
        }
        None => None,
    };
    let mut rows = Vec::new();
    for (name, load) in LOADS {
        let (mut ratios, mut all) = (Vec::new(), [Vec::new(), Vec::new()]);
        let (mut opens, mut commits, mut theirs_all) = (0.0, 0.0, Vec::new());
        // The first pair is not counted: files are made, caches are filled.
        for pair in 0..=PAIRS {
            let mut rates = [0.0; 2];
            let order = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
            for at in order {
                let before = metric(port, "state_commits_total")?;
                let since = Instant::now();
                let share = ["plain", "ca"][at];
                rates[at] = rate(&trees[at], Some(&disks[at]), share, load, time).await?;
                if at == 1 {
                    opens += rates[at] * since.elapsed().as_secs_f64();
                    commits += metric(port, "state_commits_total")? - before;
                }
            }
            if let Some((tree, disk)) = theirs.as_ref().filter(|_| pair % 4 == 1) {
                theirs_all.push(rate(tree, Some(disk), "samba", load, time).await?);
            }
            if pair > 0 {
                ratios.push(rates[1] / rates[0]);
                all.iter_mut().zip(rates).for_each(|(all, rate)| all.push(rate));
            }
        }
        let (least, _, most) = spread(&mut ratios);
        let [plain, ca] = all.map(|all| all.iter().sum::<f64>() / all.len() as f64);
        let ratio = ca / plain;
        let samba = (!theirs_all.is_empty()).then(|| spread(&mut theirs_all).1);
        println!(
            "{name:<34} {plain:>10.0}/s plain {ca:>10.0}/s CA   {ratio:.3} ({least:.2}-{most:.2})   \
             {:.3} commits each{}",
            commits / opens,
            samba.map_or(String::new(), |rate| format!("   {rate:.0}/s Samba"))
        );
        rows.push(json!({
            "load": name, "plain_per_s": plain, "ca_per_s": ca, "ratio": ratio,
            "ratio_quartiles": [least, most], "commits_each": commits / opens,
            "samba_per_s": samba,
        }));
    }
    Ok(json!({ "seconds": time.as_secs_f64(), "pairs": PAIRS, "rows": rows }))
}

fn main() -> ExitCode {
    let seconds = env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0.1);
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
