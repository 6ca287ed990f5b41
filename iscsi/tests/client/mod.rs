//! The service with a device in memory, for initiators to come to.
#![allow(dead_code, unused_imports, reason = "not every user needs all of it")]

use std::{net::SocketAddr, sync::Arc};

use iscsi::{Service, ServiceConfig, config::TargetConfig};
pub use test_support::initiator::{Client, TARGET, Who};
use tokio::net::TcpListener;

use super::memory::Memory;

pub struct House {
    pub service: Service<Memory>,
    pub memory: Arc<Memory>,
    pub at: SocketAddr,
}

pub async fn house(service: ServiceConfig, target: TargetConfig) -> House {
    let service = Service::new(service);
    let memory = Arc::new(Memory::new(1 << 14));
    service.set_target(target, &memory).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let serving = service.clone();
    tokio::spawn(async move { serving.serve(listener, 1).await });
    House { service, memory, at }
}

pub async fn plain_house() -> House {
    house(ServiceConfig::default(), TargetConfig::open(TARGET)).await
}
