//! A cable between an initiator and a target, which can be cut, fall silent, or flip a bit.
#![allow(dead_code, reason = "not every user needs all of it")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
};

/// No such event.
pub const NEVER: i64 = i64::MAX;

struct State {
    target: SocketAddr,
    cuts: watch::Sender<u64>,
    silent: AtomicBool,
    down: AtomicBool,
    /// Bytes to the target until the cable is cut.
    cut_after: AtomicI64,
    /// Bytes of each direction until a bit is flipped.
    flip_after: [AtomicI64; 2],
    accepted: AtomicUsize,
}

pub struct Cable {
    pub at: SocketAddr,
    state: Arc<State>,
}

impl Cable {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let state = Arc::new(State {
            target,
            cuts: watch::channel(0).0,
            silent: AtomicBool::new(false),
            down: AtomicBool::new(false),
            cut_after: AtomicI64::new(NEVER),
            flip_after: [AtomicI64::new(NEVER), AtomicI64::new(NEVER)],
            accepted: AtomicUsize::new(0),
        });
        tokio::spawn(accept(listener, state.clone()));
        Self { at, state }
    }

    pub fn cut(&self) {
        self.state.cuts.send_modify(|n| *n += 1);
    }

    pub fn cut_after(&self, bytes: i64) {
        self.state.cut_after.store(bytes, SeqCst);
    }

    /// Flips a bit of what goes to the target, or comes from it.
    pub fn flip_after(&self, from_target: bool, bytes: i64) {
        self.state.flip_after[usize::from(from_target)].store(bytes, SeqCst);
    }

    /// Swallows all that comes on connections that are there now or come while it is silent.
    pub fn silent(&self, silent: bool) {
        self.state.silent.store(silent, SeqCst);
    }

    pub fn down(&self, down: bool) {
        self.state.down.store(down, SeqCst);
        self.cut();
    }

    pub fn accepted(&self) -> usize {
        self.state.accepted.load(SeqCst)
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        if state.down.load(SeqCst) {
            continue;
        }
        state.accepted.fetch_add(1, SeqCst);
        let Ok(other) = TcpStream::connect(state.target).await else { continue };
        let state = state.clone();
        let mut cuts = state.cuts.subscribe();
        tokio::spawn(async move {
            let (near, far) = (stream.into_split(), other.into_split());
            tokio::select! {
                () = carry(near.0, far.1, &state, false) => {}
                () = carry(far.0, near.1, &state, true) => {}
                _ = cuts.changed() => {}
            }
        });
    }
}

async fn carry(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    state: &State,
    from_target: bool,
) {
    let mut buf = vec![0; 16 << 10];
    let mut deaf = false;
    loop {
        let Ok(mut count @ 1..) = from.read(&mut buf).await else { return };
        // A connection that was silent once stays so: what it swallowed is gone.
        deaf |= state.silent.load(SeqCst);
        if deaf {
            continue;
        }
        let bytes = i64::try_from(count).unwrap();
        let flip = &state.flip_after[usize::from(from_target)];
        let left = flip.load(SeqCst);
        if left < NEVER {
            if left < bytes {
                buf[usize::try_from(left).unwrap()] ^= 0x10;
                flip.store(NEVER, SeqCst);
            } else {
                flip.store(left - bytes, SeqCst);
            }
        }
        let left = state.cut_after.load(SeqCst);
        let mut over = false;
        if !from_target && left < NEVER {
            over = left < bytes;
            count = count.min(usize::try_from(left).unwrap());
            state.cut_after.store(if over { NEVER } else { left - bytes }, SeqCst);
        }
        if to.write_all(&buf[..count]).await.is_err() || over {
            return;
        }
    }
}
