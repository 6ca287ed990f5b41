//! Kinds of values that several tables of the file have.

use std::{borrow::Cow, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use smb_protocol::{Dialect, compression::CompressionAlgorithm};

/// A size in bytes, written as a number or as text with a unit: `"8MiB"`, `"512K"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SizeText")]
pub struct Size(pub u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Number(u64),
    Text(String),
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A size in bytes: a number, or text with a unit",
            "type": ["integer", "string"],
            "minimum": 0,
            "pattern": "^[0-9]+ *([bB]|[kKmMgGtT]([iI][bB])?)?$",
        })
    }
}

impl TryFrom<SizeText> for Size {
    type Error = String;

    fn try_from(value: SizeText) -> Result<Self, String> {
        match value {
            SizeText::Number(n) => Ok(Size(n)),
            SizeText::Text(text) => text.parse(),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(format!("{text:?} is no size; write for example \"8MiB\"")),
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(1 << shift))
            .map(Size)
            .ok_or_else(|| format!("{text:?} is no size; write for example \"8MiB\""))
    }
}

/// Whether messages must be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Signing {
    /// Every session signs or encrypts.
    #[default]
    Required,
    /// A session signs if the client wants it.
    Enabled,
}

/// Whether messages are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// Not even offered.
    Off,
    /// Offered; the client decides.
    Offered,
    /// Clients that can are told to encrypt.
    #[default]
    Desired,
    /// Who does not encrypt is refused.
    Required,
}

/// Dialects by the names administrators write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub(super) enum DialectName {
    #[serde(rename = "2.0.2")]
    V2_0_2,
    #[serde(rename = "2.1")]
    V2_1,
    #[serde(rename = "3.0")]
    V3_0,
    #[serde(rename = "3.0.2")]
    V3_0_2,
    #[serde(rename = "3.1.1")]
    V3_1_1,
}

impl DialectName {
    pub(super) fn dialect(self) -> Dialect {
        match self {
            Self::V2_0_2 => Dialect::SMB_2_0_2,
            Self::V2_1 => Dialect::SMB_2_1,
            Self::V3_0 => Dialect::SMB_3_0,
            Self::V3_0_2 => Dialect::SMB_3_0_2,
            Self::V3_1_1 => Dialect::SMB_3_1_1,
        }
    }
}

/// What does file I/O that may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IoEngine {
    /// io_uring where the kernel has it.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// A pool of threads.
    Threads,
}

impl From<IoEngine> for block_io::Engine {
    fn from(engine: IoEngine) -> Self {
        match engine {
            IoEngine::Auto => Self::Auto,
            IoEngine::Uring => Self::Uring,
            IoEngine::Threads => Self::Threads,
        }
    }
}

/// Whether data of a share are compressed on their way (MS-SMB2 3.3.4.1.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShareCompression {
    /// No answer is compressed, whoever asks for it.
    Off,
    /// An answer is compressed whose client asks for that.
    #[default]
    On,
    /// Clients that can are told to compress what they read and write.
    Force,
}

/// Whether compression is offered to clients at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Compression {
    Off,
    #[default]
    On,
}

/// Compression algorithms by the names administrators write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum AlgorithmName {
    Lz4,
    Lz77,
    Lz77Huffman,
    Lznt1,
    Pattern,
}

impl AlgorithmName {
    pub(super) fn algorithm(self) -> CompressionAlgorithm {
        match self {
            Self::Lz4 => CompressionAlgorithm::LZ4,
            Self::Lz77 => CompressionAlgorithm::LZ77,
            Self::Lz77Huffman => CompressionAlgorithm::LZ77_HUFFMAN,
            Self::Lznt1 => CompressionAlgorithm::LZNT1,
            Self::Pattern => CompressionAlgorithm::PATTERN_V1,
        }
    }
}

/// What kind of share of a cluster a share is told to be (MS-SRVS 2.2.2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterShare {
    /// One node at a time serves it: `STYPE_CLUSTER_FS`.
    Failover,
    /// Several nodes serve it at once, so no client caches what another node would have to ask for:
    /// `STYPE_CLUSTER_SOFS`.
    ScaleOut,
}

/// What sparse files of a share are to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Sparse {
    /// Disks of virtual machines: hosts are told that they can rely on them (MS-HVRS, C0009).
    #[default]
    Vm,
    /// Files like others.
    General,
}
