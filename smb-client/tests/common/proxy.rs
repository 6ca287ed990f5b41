//! A TCP proxy whose connections can be cut.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};

struct Shared {
    cut: Notify,
    down: AtomicBool,
    accepted: AtomicUsize,
    tried: Notify,
}

pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            cut: Notify::new(),
            down: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
            tried: Notify::new(),
        });
        let for_task = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            loop {
                let (mut here, _) = listener.accept().await.unwrap();
                let shared = Arc::clone(&for_task);
                shared.tried.notify_one();
                if shared.down.load(Ordering::SeqCst) {
                    continue;
                }
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let cut = shared.cut.notified();
                    let Ok(mut there) = TcpStream::connect(("127.0.0.1", target)).await else {
                        return;
                    };
                    tokio::select! {
                        _ = copy_bidirectional(&mut here, &mut there) => {}
                        () = cut => {}
                    }
                });
            }
        });
        Self { port, shared, task }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        self.shared.cut.notify_waiters();
    }

    /// Refuses new connections, or no more.
    pub fn set_down(&self, down: bool) {
        self.shared.down.store(down, Ordering::SeqCst);
    }

    /// Connections forwarded so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Waits until somebody tries to connect.
    pub async fn tried(&self) {
        self.shared.tried.notified().await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
