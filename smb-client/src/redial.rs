//! The way back to a server that was lost: it may be on its way to another node.

use std::{io, net::IpAddr, time::Duration};

use tokio::task::JoinSet;

use crate::{
    ConnectOptions,
    wire::{self, Wire},
};

/// How long one address has before the next is tried beside it.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// How long until an address that does not answer is tried once more, at first: twice as long each time.
const AGAIN: Duration = Duration::from_millis(200);
/// How long at most.
const AGAIN_AT_MOST: Duration = Duration::from_secs(1);

/// Connects to the server at the `first` addresses, by its name and at the `others`, each after a while
/// beside those before it: the first that is connected is taken. One of the `first`, or without them
/// what the name means, may be on its way to another node, and what is sent to it is lost until it is
/// there, so it is tried again and again: the system itself would wait for one second, then for two, and
/// so on. The error is that of the name.
pub(crate) async fn redial(
    options: &ConnectOptions,
    first: &[IpAddr],
    others: &[IpAddr],
) -> io::Result<Wire> {
    let address = |address: &IpAddr| (false, address.to_string());
    let name = (true, options.host.clone());
    let all = first.iter().map(address).chain([name.clone()]).chain(others.iter().map(address));
    let mut left = all.collect::<Vec<_>>().into_iter();
    let mut moving = first.iter().map(address).cycle();
    let mut attempts = JoinSet::new();
    let try_at = |attempts: &mut JoinSet<(bool, io::Result<Wire>)>,
                  (by_name, host): (bool, String)| {
        let (network, port) = (options.network.clone(), options.port);
        attempts.spawn(async move { (by_name, wire::dial(network.as_ref(), &host, port).await) });
    };
    let mut again = AGAIN;
    let mut error = None;
    loop {
        // One that was refused does not let the next wait.
        if let Some(next) = left.next() {
            try_at(&mut attempts, next);
        }
        tokio::select! {
            biased;
            Some(ended) = attempts.join_next() => match ended {
                Ok((_, Ok(wire))) => return Ok(wire),
                Ok((true, Err(why))) => error = Some(why),
                _ => {}
            },
            () = tokio::time::sleep(NEXT_ADDRESS), if left.len() > 0 => {}
            () = tokio::time::sleep(again), if left.len() == 0 && !attempts.is_empty() => {
                try_at(&mut attempts, moving.next().unwrap_or_else(|| name.clone()));
                again = (again * 2).min(AGAIN_AT_MOST);
            }
            else => return Err(error.unwrap_or_else(|| io::ErrorKind::NotConnected.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        net::{Ipv4Addr, SocketAddr},
        time::Instant,
    };

    use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
    use tokio::net::TcpStream;

    use super::*;
    use crate::Login;

    const LIMIT: Duration = Duration::from_secs(60);

    /// Connections to a port that the system has sent for and that nothing has answered.
    fn unanswered(port: u16) -> usize {
        let to = format!("0100007F:{port:04X}");
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        fields.filter(|it| it.get(2) == Some(&&*to) && it.get(3) == Some(&"02")).count()
    }

    /// Where nothing answers the name is dialled beside the first attempt, which the system alone would
    /// repeat; where somebody refuses, that is said at once.
    #[tokio::test]
    async fn a_name_that_does_not_answer_is_dialled_again_and_again() {
        // A listener that has as many connections as it keeps drops what asks for more.
        let full = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&full, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        listen(&full, 0).unwrap();
        let at = SocketAddr::try_from(getsockname(&full).unwrap()).unwrap();
        let _kept = TcpStream::connect(at).await.unwrap();
        let options = ConnectOptions::new("127.0.0.1", at.port(), Login::new("u", "p"));
        let dialled = tokio::spawn({
            let options = options.clone();
            async move { redial(&options, &[], &[]).await.map(drop) }
        });
        let began = Instant::now();
        while unanswered(at.port()) < 3 {
            assert!(began.elapsed() < LIMIT, "{} attempts", unanswered(at.port()));
            tokio::task::yield_now().await;
        }
        drop(full);
        dialled.await.unwrap().expect_err("nobody listens any more");
        let refused = redial(&options, &[], &[]).await.map(drop).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
