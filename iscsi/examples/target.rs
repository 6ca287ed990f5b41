//! Serves a disk in memory: `target ADDRESS [MIB] [USER SECRET]`. Prints where, once it listens, and
//! serves until its standard input ends.

use std::{io::Write, sync::Arc};

use iscsi::{
    Service, ServiceConfig,
    chap::{Account, Algorithm, ChapSettings},
    config::TargetConfig,
};
use tokio::io::AsyncReadExt;

#[path = "../tests/memory/mod.rs"]
mod memory;

const NAME: &str = "iqn.2024-01.example.bulkhead:memory";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let address = arguments.first().map_or("127.0.0.1:0", String::as_str);
    let mebibytes: usize = arguments.get(1).map_or(Ok(64), |text| text.parse())?;
    let mut config = TargetConfig::open(NAME);
    if let [_, _, user, secret, ..] = &arguments[..] {
        let account = Account::new(user, secret.as_bytes())?;
        config.chap = Some(ChapSettings::new(vec![account], None, Algorithm::ALL.to_vec())?);
    }
    let device = Arc::new(memory::Memory::new(mebibytes << 11));
    device.permits.add_permits(1 << 20);
    let service = Service::new(ServiceConfig::default());
    service.set_target(config, &device)?;
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("iscsi://{}/{NAME}/0", listener.local_addr()?);
    std::io::stdout().flush()?;
    let (mut input, mut end) = (tokio::io::stdin(), [0; 1]);
    tokio::select! {
        () = service.serve(listener, 1) => {}
        _ = input.read(&mut end) => {}
    }
    service.stop().await;
    Ok(())
}
