//! DFS referrals: who serves a part of a namespace (MS-DFSC 2.2).
//!
//! ```text
//!  "\server\share\link\file" ─► Request ─► Response { consumed, targets } ─► "\target\share" + "\file"
//! ```

use crate::{
    name,
    wire::{Put, Reader, Result, WireError, len16},
};

/// REQ_GET_DFS_REFERRAL, with what matters of REQ_GET_DFS_REFERRAL_EX.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Highest version of referrals that the client understands.
    pub level: u16,
    /// The path, with one backslash in front.
    pub path: String,
}

/// Text up to its first zero.
fn text(bytes: &[u8]) -> Result<String> {
    let text = name::utf16(&bytes[..bytes.len() & !1], "dfs.RequestFileName")?;
    Ok(text.split('\0').next().unwrap_or_default().to_owned())
}

impl Request {
    /// Reads the input of FSCTL_DFS_GET_REFERRALS.
    pub fn parse(input: &[u8]) -> Result<Self> {
        let mut r = Reader::new(input);
        let level = r.u16("dfs.MaxReferralLevel")?;
        Ok(Self { level, path: text(r.rest())? })
    }

    /// Reads the input of FSCTL_DFS_GET_REFERRALS_EX; the client's site is not used.
    pub fn parse_ex(input: &[u8]) -> Result<Self> {
        let mut r = Reader::new(input);
        let level = r.u16("dfs.MaxReferralLevel")?;
        r.skip(2, "dfs.RequestFlags")?;
        let len = r.u32("dfs.RequestDataLength")? as usize;
        let mut data = Reader::new(r.bytes(len, "dfs.RequestData")?);
        let len = data.u16("dfs.RequestFileNameLength")?.into();
        Ok(Self { level, path: text(data.bytes(len, "dfs.RequestFileName")?)? })
    }

    /// Appends the input of FSCTL_DFS_GET_REFERRALS.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(self.level);
        name::put_utf16(out, &self.path);
        out.put_u16(0);
    }

    /// Appends the input of FSCTL_DFS_GET_REFERRALS_EX without a site.
    pub fn encode_ex(&self, out: &mut Vec<u8>) {
        let path = name::to_utf16(&self.path);
        out.put_u16(self.level);
        out.put_u16(0);
        out.put_u32(path.len() as u32 + 2);
        out.put_u16(len16(path.len()));
        out.put(&path);
    }
}

/// RESP_GET_DFS_REFERRAL of a root or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Version of the entries, 1 to 4.
    pub version: u16,
    /// The part of the path that was resolved, with one backslash in front.
    pub prefix: String,
    /// The targets are roots of namespaces, else links.
    pub root: bool,
    /// Seconds that the client may remember it.
    pub time_to_live: u32,
    /// Targets, the best first, each with one backslash in front.
    pub targets: Vec<String>,
}

const HEADER: usize = 8;
const REFERRAL_SERVERS: u32 = 1;
const STORAGE_SERVERS: u32 = 2;
const TARGET_SET_BOUNDARY: u16 = 4;

impl Response {
    /// Length of an entry without its texts.
    fn entry_len(&self) -> usize {
        match self.version {
            1 => 8,
            2 => 22,
            _ => 34,
        }
    }

    /// Appends the output.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let kind = u16::from(self.root);
        out.put_u16(len16(self.prefix.encode_utf16().count() * 2));
        out.put_u16(len16(self.targets.len()));
        out.put_u32(STORAGE_SERVERS | if self.root { REFERRAL_SERVERS } else { 0 });
        let mut texts = Vec::new();
        let entry = self.entry_len();
        let behind = HEADER + entry * self.targets.len();
        if self.version > 1 {
            name::put_utf16(&mut texts, &self.prefix);
            texts.put_u16(0);
        }
        for (at, target) in self.targets.iter().enumerate() {
            let here = out.len() - start;
            out.put_u16(self.version);
            if self.version == 1 {
                out.put_u16(len16(entry + name::to_utf16(target).len() + 2));
                out.put_u16(kind);
                out.put_u16(0);
                name::put_utf16(out, target);
                out.put_u16(0);
                continue;
            }
            out.put_u16(len16(entry));
            out.put_u16(kind);
            let first = self.version == 4 && at == 0;
            out.put_u16(if first { TARGET_SET_BOUNDARY } else { 0 });
            if self.version == 2 {
                out.put_u32(0);
            }
            out.put_u32(self.time_to_live);
            out.put_u16(len16(behind - here));
            out.put_u16(len16(behind - here));
            out.put_u16(len16(behind - here + texts.len()));
            out.put_zeros(entry - (out.len() - start - here));
            name::put_utf16(&mut texts, target);
            texts.put_u16(0);
        }
        out.put(&texts);
    }

    /// Reads the answer to a request for `path`.
    pub fn parse(output: &[u8], path: &str) -> Result<Self> {
        let mut r = Reader::new(output);
        let consumed = usize::from(r.u16("dfs.PathConsumed")?) / 2;
        let count = r.u16("dfs.NumberOfReferrals")?;
        let flags = r.u32("dfs.ReferralHeaderFlags")?;
        let prefix: Vec<u16> = path.encode_utf16().take(consumed).collect();
        let prefix = String::from_utf16(&prefix)
            .map_err(|_| WireError::Text { field: "dfs.PathConsumed" })?;
        let mut response = Self {
            version: 0,
            prefix,
            root: flags & REFERRAL_SERVERS != 0,
            time_to_live: 0,
            targets: Vec::new(),
        };
        for _ in 0..count {
            let at = r.position();
            response.version = r.u16("dfs.VersionNumber")?;
            let size = usize::from(r.u16("dfs.Size")?);
            r.skip(4, "dfs.ServerType")?;
            let entry = r.region(at, size, "dfs.Size")?;
            let whole = match response.version {
                1 => entry.get(8..).unwrap_or_default(),
                2..=4 => {
                    if response.version == 2 {
                        r.skip(4, "dfs.Proximity")?;
                    }
                    response.time_to_live = r.u32("dfs.TimeToLive")?;
                    r.skip(4, "dfs.DFSPathOffset")?;
                    let offset = at + usize::from(r.u16("dfs.NetworkAddressOffset")?);
                    output.get(offset..).ok_or(WireError::Outside {
                        field: "dfs.NetworkAddressOffset",
                        offset,
                        len: 2,
                        have: output.len(),
                    })?
                }
                other => {
                    let value = other.into();
                    return Err(WireError::Value { field: "dfs.VersionNumber", value });
                }
            };
            let end = whole.chunks_exact(2).position(|unit| unit == [0, 0]);
            let end = end.map_or(whole.len(), |units| units * 2);
            response.targets.push(text(&whole[..end])?);
            let read = r.position() - at;
            let left = size.checked_sub(read);
            let left = left.ok_or(WireError::Value { field: "dfs.Size", value: size as u64 })?;
            r.skip(left, "dfs.Size")?;
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn messages_round_trip(
            level: u16, server in "[a-zß𝄞]{1,9}", share in "[a-z]{1,9}", rest in "(\\\\[a-z]{1,5}){0,3}",
            version in 1u16..5, root: bool, time in any::<u32>(), targets in prop::collection::vec("\\\\[a-zäß]{1,9}\\\\[a-z]{1,9}", 0..5),
        ) {
            let prefix = format!("\\{server}\\{share}");
            let path = format!("{prefix}{rest}");
            let request = Request { level, path: path.clone() };
            let (mut plain, mut ex) = (Vec::new(), Vec::new());
            request.encode(&mut plain);
            request.encode_ex(&mut ex);
            prop_assert_eq!(&Request::parse(&plain), &Ok(request.clone()));
            prop_assert_eq!(&Request::parse_ex(&ex), &Ok(request));
            let response = Response { version, prefix, root, time_to_live: time, targets };
            let mut output = Vec::new();
            response.encode(&mut output);
            let mut want = response.clone();
            if response.targets.is_empty() { want.version = 0; }
            if response.targets.is_empty() || version == 1 { want.time_to_live = 0; }
            prop_assert_eq!(Response::parse(&output, &path), Ok(want));
        }

        #[test]
        fn parsing_is_total(mut noise in prop::collection::vec(any::<u8>(), 0..120), version in 1u8..5) {
            let _ = Request::parse(&noise);
            let _ = Request::parse_ex(&noise);
            let _ = Response::parse(&noise, "\\a\\b");
            if noise.len() > 12 {
                noise[2] = 2;
                noise[3] = 0;
                noise[8] = version;
                noise[9] = 0;
                let _ = Response::parse(&noise, "\\a\\b");
            }
        }
    }
}
