//! The server's side of one named pipe: calls are served while they are written, and their results
//! stand to be read. Who calls is known from the session that the pipe belongs to; whether another proof
//! is taken within RPC is for who serves it.

use crate::{
    FaultStatus, SyntaxId, Transfer,
    association::{Association, Broken, Call, Limits, Settings, Step},
    security::{AuthType, Host, Logon},
};

/// Most that may stand unread when a call is served: who wants more must read first.
const MAX_UNREAD: usize = 256 << 10;
/// The group of those who ask for a new one: pipes share no context handles.
const GROUP: u32 = 0x53f0;

/// What a pipe asks of its server.
struct NoHost;

impl Host for NoHost {
    fn group(&mut self, wanted: u32) -> u32 {
        group(wanted)
    }

    fn logon(&mut self, _: AuthType) -> Option<Box<dyn Logon>> {
        None
    }
}

/// The association group of a pipe whose client wants to join `wanted`: groups of pipes share nothing.
pub fn group(wanted: u32) -> u32 {
    if wanted == 0 { GROUP } else { wanted }
}

/// The server's side of one pipe.
#[derive(Debug)]
pub struct PipeEnd {
    association: Association,
    /// The message that is being read, and how much of it was.
    front: Vec<u8>,
    read: usize,
}

impl PipeEnd {
    /// A pipe on which `interfaces` are served; `address` is its name as clients are told.
    pub fn new(interfaces: &'static [SyntaxId], address: String) -> Self {
        let transfers = &[Transfer::Ndr];
        let settings = Settings { interfaces, transfers, address, limits: Limits::default() };
        Self { association: Association::new(settings), front: Vec::new(), read: 0 }
    }

    /// Takes what a client wrote, of whom no other proof is taken; calls that are complete are given to
    /// `serve`, which returns the results or a fault.
    ///
    /// # Errors
    /// What came is no RPC or has no place here, or too many results stand unread. The pipe is of no use
    /// then.
    pub fn write(
        &mut self,
        bytes: &[u8],
        serve: impl FnMut(&Call) -> Result<Vec<u8>, FaultStatus>,
    ) -> Result<(), Broken> {
        self.write_from(bytes, &mut NoHost, serve)
    }

    /// The same of a client who may prove who it is to `host`.
    ///
    /// # Errors
    /// As [`Self::write`], or what came is not authentic.
    pub fn write_from(
        &mut self,
        bytes: &[u8],
        host: &mut dyn Host,
        mut serve: impl FnMut(&Call) -> Result<Vec<u8>, FaultStatus>,
    ) -> Result<(), Broken> {
        self.association.push(bytes);
        loop {
            let unread = self.unread();
            if unread > MAX_UNREAD && self.association.is_due() {
                return Err(Broken::Unread(unread));
            }
            match self.association.step(host)? {
                Step::Starved => return Ok(()),
                Step::Moved | Step::GivenUp(_) => {}
                Step::Call(call) => {
                    let result = serve(&call);
                    self.association.answer(call.id, result.as_deref().map_err(|status| *status));
                }
            }
        }
    }

    /// Takes up to `most` bytes of one fragment, and how many of it are left; `None` if there is
    /// none.
    pub fn read(&mut self, most: usize) -> Option<(Vec<u8>, usize)> {
        if self.front.is_empty() {
            self.front = self.association.transmit()?;
        }
        let end = self.front.len().min(self.read.saturating_add(most));
        let taken = self.front[self.read..end].to_vec();
        let left = self.front.len() - end;
        self.read = end;
        if left == 0 {
            (self.front, self.read) = (Vec::new(), 0);
        }
        Some((taken, left))
    }

    /// Throws away what it holds.
    pub fn clear(&mut self) {
        (self.front, self.read) = (Vec::new(), 0);
        self.association.clear();
    }

    /// Bytes that stand to be read, and those of the first fragment.
    pub fn available(&self) -> (usize, usize) {
        let first = match self.front.len() {
            0 => self.association.unsent().1,
            len => len - self.read,
        };
        (self.unread(), first)
    }

    /// Bytes that it holds: what stands to be read, and what is not yet a whole call.
    pub fn held(&self) -> usize {
        self.front.len() - self.read + self.association.held()
    }

    fn unread(&self) -> usize {
        self.front.len() - self.read + self.association.unsent().0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pdu::{Bind, CALL_HEADER_LEN, Context, Flags, HEADER_LEN, Kind, Pdu, Request};

    const MAX_CALL: usize = 1 << 20;
    const MIN_FRAGMENT: u16 = 256;

    const ECHO: SyntaxId = SyntaxId::new(1, 2, 3, [4; 8], 1, 0);
    const FEATURES: SyntaxId = SyntaxId::features(crate::Features(7));

    fn echo(call: &Call) -> Result<Vec<u8>, FaultStatus> {
        match call.opnum {
            0 => Ok(call.stub.clone()),
            _ => Err(FaultStatus::OP_RANGE),
        }
    }

    fn bind(max_receive: u16) -> Vec<u8> {
        let context = |id, interface, transfers: &[SyntaxId]| Context {
            id,
            interface,
            transfers: transfers.to_vec(),
        };
        let other = SyntaxId { major: 9, ..ECHO };
        let bind = Bind {
            max_transmit: 4280,
            max_receive,
            group: 0,
            contexts: vec![
                context(0, ECHO, &[SyntaxId::NDR]),
                context(1, ECHO, &[SyntaxId::NDR64]),
                context(2, ECHO, &[FEATURES]),
                context(3, other, &[SyntaxId::NDR]),
            ],
        };
        Pdu::encode(Kind::BIND, Flags::FIRST.or(Flags::LAST), 1, |out| bind.encode(out))
    }

    fn bound(max_receive: u16) -> PipeEnd {
        const INTERFACES: &[SyntaxId] = &[ECHO];
        let mut pipe = PipeEnd::new(INTERFACES, "\\PIPE\\echo".into());
        pipe.write(&bind(max_receive), echo).unwrap();
        let (ack, left) = pipe.read(usize::MAX).unwrap();
        assert_eq!((ack[2], left), (Kind::BIND_ACK.0, 0));
        // Each context has its verdict: accepted, no transfer syntax, the features there are, no interface.
        let results = ack.len() - 4 * 24;
        let verdict = |n: usize| (ack[results + n * 24], ack[results + n * 24 + 2]);
        assert_eq!([0, 1, 2, 3].map(verdict), [(0, 0), (2, 2), (3, 3), (2, 1)]);
        pipe
    }

    fn request(context: u16, opnum: u16, flags: Flags, stub: &[u8]) -> Vec<u8> {
        let request = Request { context, opnum, stub };
        Pdu::encode(Kind::REQUEST, flags, 7, |out| request.encode(out))
    }

    #[test]
    fn faults_name_what_is_wrong() {
        let mut pipe = bound(4280);
        for (context, opnum, status) in
            [(0, 5, FaultStatus::OP_RANGE), (9, 0, FaultStatus::UNKNOWN_INTERFACE)]
        {
            pipe.write(&request(context, opnum, Flags::FIRST.or(Flags::LAST), &[]), echo).unwrap();
            let (fault, _) = pipe.read(usize::MAX).unwrap();
            assert_eq!(fault[2], Kind::FAULT.0);
            assert_eq!(fault[24..28], status.0.to_le_bytes());
        }
    }

    #[test]
    fn what_has_no_place_breaks_the_pipe() {
        let mut pipe = PipeEnd::new(&[], String::new());
        let early = request(0, 0, Flags::FIRST.or(Flags::LAST), &[]);
        assert_eq!(pipe.write(&early, echo), Err(Broken::Unexpected(Kind::REQUEST)));
        let mut pipe = bound(4280);
        let middle = request(0, 0, Flags::LAST, &[]);
        assert_eq!(pipe.write(&middle, echo), Err(Broken::Unexpected(Kind::REQUEST)));
        assert!(matches!(pipe.write(&[9; 16], echo), Err(Broken::Malformed(_))));
    }

    #[test]
    fn a_call_that_is_too_long_is_a_fault_and_unread_results_are_bounded() {
        let mut pipe = bound(4280);
        let part = vec![0; 5000];
        let mut flags = Flags::FIRST;
        for _ in 0..=MAX_CALL / part.len() {
            pipe.write(&request(0, 0, flags, &part), echo).unwrap();
            flags = Flags::NONE;
        }
        pipe.write(&request(0, 0, Flags::LAST, &part), echo).unwrap();
        let (fault, _) = pipe.read(usize::MAX).unwrap();
        assert_eq!(fault[24..28], FaultStatus::OUT_OF_MEMORY.0.to_le_bytes());
        let whole = request(0, 0, Flags::FIRST.or(Flags::LAST), &part);
        let refused = (0..2000).find_map(|_| pipe.write(&whole, echo).err());
        assert!(matches!(refused, Some(Broken::Unread(unread)) if unread < MAX_UNREAD + 10_000));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// A call cut anywhere into fragments and writes comes back whole, cut into fragments
        /// that the client can take.
        #[test]
        fn calls_survive_being_cut(
            stub in prop::collection::vec(any::<u8>(), 0..20_000), cut in 1usize..5000,
            piece in 1usize..700, max_receive in 200u16..6000, most in 1usize..3000,
        ) {
            let mut pipe = bound(max_receive);
            let mut bytes = Vec::new();
            let mut parts = stub.chunks(cut).peekable();
            let mut flags = Flags::FIRST;
            if parts.peek().is_none() {
                bytes = request(0, 0, Flags::FIRST.or(Flags::LAST), &[]);
            }
            while let Some(part) = parts.next() {
                if parts.peek().is_none() { flags |= Flags::LAST; }
                bytes.extend(request(0, 0, flags, part));
                flags = Flags::NONE;
            }
            for piece in bytes.chunks(piece) {
                pipe.write(piece, echo).unwrap();
            }
            let (mut back, mut fragment) = (Vec::new(), Vec::new());
            while let Some((taken, left)) = pipe.read(most) {
                prop_assert!(taken.len() <= most);
                fragment.extend(taken);
                if left == 0 {
                    prop_assert!(fragment.len() <= usize::from(max_receive.max(MIN_FRAGMENT)));
                    let (pdu, len) = Pdu::split(&fragment, 6000).unwrap().unwrap();
                    prop_assert_eq!((pdu.kind, pdu.call_id, len), (Kind::RESPONSE, 7, fragment.len()));
                    back.extend_from_slice(&fragment[CALL_HEADER_LEN..]);
                    fragment.clear();
                }
            }
            prop_assert_eq!(back, stub);
            prop_assert_eq!(pipe.available(), (0, 0));
        }

        /// Noise breaks the pipe or is answered; it never does harm.
        #[test]
        fn noise_is_survived(noise in prop::collection::vec(any::<u8>(), 0..200), kind: u8) {
            let mut pipe = bound(4280);
            let bytes = Pdu::encode(Kind(kind % 20), Flags::FIRST.or(Flags::LAST), 3, |out| {
                out.extend_from_slice(&noise);
            });
            let _ = pipe.write(&bytes, echo);
            prop_assert!(pipe.available().0 <= 4 * (noise.len() + HEADER_LEN + 1024));
        }
    }
}
