//! What the measurements of an SMB server share: where it is, how to talk to it, how to report.

use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use smb_client::{Compress, ConnectOptions, Encryption, Signing, SmbUrl, raw::RawConnection};
use smb_protocol::compression::CompressionAlgorithm;

use super::histogram::Histogram;
use crate::password;

/// The server, and how to connect to it.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// What to use: `smb://[user@]host[:port]/share/path`. It is made if need be.
    pub url: SmbUrl,
    /// Also report on this process and its descendants.
    #[arg(long)]
    pub server_pid: Option<u32>,
    /// Use this dialect only: 2.1, 3.0, 3.0.2 or 3.1.1.
    #[arg(long)]
    dialect: Option<String>,
    /// Sign messages; off still signs when the server demands it.
    #[arg(long, value_enum, default_value = "on")]
    sign: Switch,
    /// Encrypt messages; off still encrypts when the server demands it.
    #[arg(long, value_enum, default_value = "off")]
    encrypt: Switch,
    /// Compress what is read and written, where the server can: with all algorithms (auto), or with one of
    /// lz4, lz77, lz77-huffman and lznt1. What is written is then half zeros.
    #[arg(long, value_name = "ALGORITHM", num_args = 0..=1, default_missing_value = "auto",
          value_parser = parse_compression)]
    pub compress: Option<Compression>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Compression algorithms that are offered to the server.
#[derive(Clone, Debug)]
pub struct Compression(Vec<CompressionAlgorithm>);

/// `auto`, or the algorithm of this name; patterns are among them in any case.
fn parse_compression(text: &str) -> Result<Compression, String> {
    let algorithm = match text {
        "auto" => return Ok(Compression(CompressionAlgorithm::ALL.to_vec())),
        "lz4" => CompressionAlgorithm::LZ4,
        "lz77" => CompressionAlgorithm::LZ77,
        "lz77-huffman" => CompressionAlgorithm::LZ77_HUFFMAN,
        "lznt1" => CompressionAlgorithm::LZNT1,
        _ => return Err("not one of auto, lz4, lz77, lz77-huffman, lznt1".into()),
    };
    Ok(Compression(vec![algorithm, CompressionAlgorithm::PATTERN_V1]))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

impl Target {
    /// How to connect, asking for so many credits.
    pub fn options(&self, credits: u16) -> anyhow::Result<ConnectOptions> {
        let login = password::login(&self.url)?;
        let mut options = ConnectOptions::for_url(&self.url, login);
        if let Some(text) = &self.dialect {
            let dialect = smb_client::parse_dialect(text)
                .with_context(|| format!("{text:?} is not one of 2.1, 3.0, 3.0.2, 3.1.1"))?;
            options.dialects = (dialect, dialect);
        }
        options.signing =
            if self.sign == Switch::On { Signing::Required } else { Signing::IfRequired };
        options.encryption = match self.encrypt {
            Switch::On => Encryption::Required,
            Switch::Off => Encryption::IfRequired,
        };
        if let Some(Compression(algorithms)) = &self.compress {
            options.compress = Compress::Always;
            options.compression.clone_from(algorithms);
        }
        options.credits = credits;
        Ok(options)
    }
}

/// Dialect, signing and cipher of a connection.
pub fn protocol(connection: &RawConnection) -> serde_json::Value {
    json!({
        "dialect": format!("{:?}", connection.dialect()),
        "signing": connection.signing().map(|a| format!("{a:?}")),
        "cipher": connection.cipher().map(|c| format!("{c:?}")),
        "compression": connection.compression().map(|c| format!("{:?}", c.algorithm())),
    })
}

/// Microseconds with one decimal.
pub fn micros(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e7).round() / 10.0
}

/// A histogram's count and percentiles.
pub fn latencies(histogram: &Histogram) -> serde_json::Value {
    json!({
        "operations": histogram.total(),
        "p50_us": micros(histogram.quantile(0.5)),
        "p90_us": micros(histogram.quantile(0.9)),
        "p99_us": micros(histogram.quantile(0.99)),
        "p99_9_us": micros(histogram.quantile(0.999)),
        "max_us": micros(histogram.longest()),
    })
}

/// Prints the percentiles of what was done.
pub fn table(reads: &Histogram, writes: &Histogram) {
    say!(
        "  {:8} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "us",
        "count",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "max"
    );
    for (name, histogram) in [("read", reads), ("write", writes)] {
        if histogram.total() > 0 {
            let column = |of| micros(histogram.quantile(of));
            say!(
                "  {name:8} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9}",
                histogram.total(),
                column(0.5),
                column(0.9),
                column(0.99),
                column(0.999),
                micros(histogram.longest())
            );
        }
    }
}
