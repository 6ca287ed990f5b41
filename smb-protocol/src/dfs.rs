//! DFS referrals: who serves a part of a namespace (MS-DFSC 2.2).
//!
//! ```text
//!  "\server\share\link\file" ─► Request ─► Response { consumed, targets } ─► "\target\share" + "\file"
//! ```

use nom::Parser;

use crate::{
    name,
    parse::{self, Failed, Input, from, part, size16, size32, skip, u16, u32, utf16},
    wire::{Put, Result, len16},
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
fn text(bytes: Input<'_>) -> std::result::Result<String, Failed> {
    const FIELD: &str = "dfs.RequestFileName";
    let even = part(bytes.len() & !1, FIELD)(bytes)?.1;
    let mut text = utf16(even, FIELD)?;
    text.truncate(text.find('\0').unwrap_or(text.len()));
    Ok(text)
}

impl Request {
    /// Reads the input of FSCTL_DFS_GET_REFERRALS.
    ///
    /// # Errors
    /// The input has no level, or the path is not UTF-16.
    pub fn parse(input: &[u8]) -> Result<Self> {
        parse::with(Input::new(input), |input| {
            let (i, level) = u16("dfs.MaxReferralLevel")(input)?;
            Ok((i, Self { level, path: text(i)? }))
        })
    }

    /// Reads the input of FSCTL_DFS_GET_REFERRALS_EX; the client's site is not used.
    ///
    /// # Errors
    /// The input ends before the data that it counts, or these before the path, or the path is not
    /// UTF-16.
    pub fn parse_ex(input: &[u8]) -> Result<Self> {
        parse::with(Input::new(input), |input| {
            let (i, (level, _, len)) = (
                u16("dfs.MaxReferralLevel"),
                skip(2, "dfs.RequestFlags"),
                size32("dfs.RequestDataLength"),
            )
                .parse(input)?;
            let (i, data) = part(len, "dfs.RequestData")(i)?;
            let (path, len) = size16("dfs.RequestFileNameLength")(data)?;
            let (_, path) = part(len, "dfs.RequestFileName")(path)?;
            Ok((i, Self { level, path: text(path)? }))
        })
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
/// Most bytes of an output (MS-DFSC 3.1.5.4, note).
const LONGEST: usize = 56 << 10;
/// Referrals may share a text. All targets are at most this many times as long as the output.
const MAX_SHARED: usize = 16;
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

    /// Bytes that a target takes, with its texts.
    fn target_len(&self, target: &str) -> usize {
        let text = |text: &str| text.encode_utf16().count() * 2 + 2;
        let prefixes = if self.version == 1 { 0 } else { 2 * text(&self.prefix) };
        self.entry_len() + prefixes + text(target)
    }

    /// Drops the last targets until the output has no more than `room` bytes, and no more than
    /// clients take (MS-DFSC 3.2.5.1); `false` if not even one target fits.
    pub fn fit(&mut self, room: usize) -> bool {
        let mut left = room.min(LONGEST).saturating_sub(HEADER);
        let fits = self.targets.iter().take_while(|target| {
            let rest = left.checked_sub(self.target_len(target));
            rest.is_some_and(|rest| {
                left = rest;
                true
            })
        });
        let fits = fits.count();
        self.targets.truncate(fits);
        fits > 0
    }

    /// Appends the output of either control. Each referral has three texts of its own, in the order
    /// in which it names them: there are clients that read them one behind the other.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let kind = u16::from(self.root);
        out.put_u16(len16(self.prefix.encode_utf16().count() * 2));
        out.put_u16(len16(self.targets.len()));
        out.put_u32(STORAGE_SERVERS | if self.root { REFERRAL_SERVERS } else { 0 });
        let mut texts = Vec::new();
        let entry = self.entry_len();
        let behind = HEADER + entry * self.targets.len();
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
            // DFSPathOffset, DFSAlternatePathOffset, NetworkAddressOffset.
            for text in [&self.prefix, &self.prefix, target] {
                out.put_u16(len16(behind - here + texts.len()));
                name::put_utf16(&mut texts, text);
                texts.put_u16(0);
            }
            out.put_zeros(entry - (out.len() - start - here));
        }
        out.put(&texts);
    }

    /// Reads the referral that `entry` begins with, and gives what stands behind it. Its texts are
    /// named from its beginning and may be anywhere in `whole`.
    fn referral<'a>(
        &mut self,
        whole: Input<'a>,
        entry: Input<'a>,
    ) -> std::result::Result<Input<'a>, Failed> {
        let (i, (version, size, _)) =
            (u16("dfs.VersionNumber"), size16("dfs.Size"), skip(4, "dfs.ServerType"))
                .parse(entry)?;
        let (behind, this) = part(size, "dfs.Size")(entry)?;
        let (i, target) = match version {
            1 => (i, part(8, "dfs.Size")(this).map_or(Input::new(&[]), |(text, _)| text)),
            2..=4 => {
                let proximity = if version == 2 { 4 } else { 0 };
                let (i, (_, time_to_live, _, offset)) = (
                    skip(proximity, "dfs.Proximity"),
                    u32("dfs.TimeToLive"),
                    skip(4, "dfs.DFSPathOffset"),
                    size16("dfs.NetworkAddressOffset"),
                )
                    .parse(i)?;
                self.time_to_live = time_to_live;
                (i, from(whole, entry.position() + offset, "dfs.NetworkAddressOffset")?)
            }
            other => return Err(entry.impossible("dfs.VersionNumber", other)),
        };
        self.version = version;
        // Up to its zero, or to the end.
        let units = target.bytes().chunks_exact(2).position(|unit| unit == [0, 0]);
        let len = units.map_or(target.len(), |units| units * 2);
        self.targets.push(text(part(len, "dfs.NetworkAddress")(target)?.1)?);
        if entry.len() - i.len() > size {
            return Err(entry.impossible("dfs.Size", size as u64));
        }
        Ok(behind)
    }

    /// Reads the answer to a request for `path`.
    ///
    /// # Errors
    /// The output ends before the referrals that it counts, one is of an unknown version or ends within
    /// a field, a target is outside of it or not UTF-16, or the path is cut within a character.
    pub fn parse(output: &[u8], path: &str) -> Result<Self> {
        parse::with(Input::new(output), |input| {
            let (mut left, (consumed, count, flags)) = (
                size16("dfs.PathConsumed"),
                u16("dfs.NumberOfReferrals"),
                u32("dfs.ReferralHeaderFlags"),
            )
                .parse(input)?;
            let prefix: Vec<u16> = path.encode_utf16().take(consumed / 2).collect();
            let prefix = String::from_utf16(&prefix)
                .map_err(|_| input.impossible("dfs.PathConsumed", consumed as u64))?;
            let root = flags & REFERRAL_SERVERS != 0;
            let mut response =
                Self { version: 0, prefix, root, time_to_live: 0, targets: Vec::new() };
            for _ in 0..count {
                left = response.referral(input, left)?;
                let all: usize = response.targets.iter().map(String::len).sum();
                if all > input.len().saturating_mul(MAX_SHARED) {
                    return Err(left.impossible("dfs.NetworkAddressOffset", all as u64));
                }
            }
            Ok((left, response))
        })
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

        /// Every referral names three texts of its own, which stand one behind the other in its
        /// order and fill the output to its end.
        #[test]
        fn texts_are_apart_and_in_order(
            prefix in "\\\\[a-zß]{1,9}\\\\[a-z]{1,9}", version in 2u16..5,
            targets in prop::collection::vec("\\\\[a-zäß]{1,9}\\\\[a-z]{1,9}", 1..5),
        ) {
            let response =
                Response { version, prefix: prefix.clone(), root: false, time_to_live: 1, targets };
            let mut output = Vec::new();
            response.encode(&mut output);
            let word = |at: usize| usize::from(u16::from_le_bytes([output[at], output[at + 1]]));
            let entry = response.entry_len();
            let mut next = HEADER + entry * response.targets.len();
            for (at, target) in response.targets.iter().enumerate() {
                let here = HEADER + at * entry;
                let offsets = here + if version == 2 { 16 } else { 12 };
                for (field, want) in [&prefix, &prefix, target].into_iter().enumerate() {
                    prop_assert_eq!(here + word(offsets + 2 * field), next);
                    let mut text = name::to_utf16(want);
                    text.extend([0, 0]);
                    prop_assert_eq!(&output[next..next + text.len()], &text[..]);
                    next += text.len();
                }
            }
            prop_assert_eq!(next, output.len());
        }

        /// What is made to fit does, and nothing goes that had room.
        #[test]
        fn what_does_not_fit_is_left_out(
            version in 1u16..5, targets in prop::collection::vec("\\\\[a-zäß]{1,40}", 0..9),
            room in 0usize..1200,
        ) {
            let whole = Response {
                version, prefix: "\\s\\share".into(), root: true, time_to_live: 1, targets,
            };
            let mut response = whole.clone();
            let some = response.fit(room);
            prop_assert_eq!(some, !response.targets.is_empty());
            let mut output = Vec::new();
            response.encode(&mut output);
            prop_assert!(!some || output.len() <= room);
            if let Some(next) = whole.targets.get(response.targets.len()) {
                let mut more = response.clone();
                more.targets.push(next.clone());
                let mut output = Vec::new();
                more.encode(&mut output);
                prop_assert!(output.len() > room);
            }
        }

        /// Many referrals that all name the same long text give no more than a bound.
        #[test]
        fn shared_texts_are_bounded(count in 0u16..300, len in 0usize..3000) {
            let mut output = Vec::new();
            output.put_u16(0);
            output.put_u16(count);
            output.put_u32(0);
            for at in 0..usize::from(count) {
                output.put_u16(3);
                output.put_u16(18);
                output.put_zeros(12);
                output.put_u16(len16((usize::from(count) - at) * 18));
            }
            output.put(&name::to_utf16(&"x".repeat(len)));
            let all = usize::from(count) * len;
            match Response::parse(&output, "") {
                Ok(response) => {
                    prop_assert_eq!(response.targets.len(), usize::from(count));
                    prop_assert!(response.targets.iter().all(|target| target.len() == len));
                    prop_assert!(all <= MAX_SHARED * output.len());
                }
                Err(_) => prop_assert!(all > MAX_SHARED * output.len()),
            }
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
