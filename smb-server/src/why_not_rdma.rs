//! Why a connection of a session, or its data, do not go by RDMA: in a sentence for administrators
//! (docs/rdma.md).
//!
//! A client asks for the server's interfaces (MS-SMB2 3.2.4.20.10), takes those that are told to be
//! capable of RDMA, and connects there. What this server saw of it says where that ended.

use std::sync::atomic::{AtomicU8, Ordering};

use smb_protocol::{
    Dialect,
    fscc::fsctl::{InterfaceCapability, NetworkInterface},
};

use crate::transport::Carrier;

/// What the client of a session was told when it asked for the server's interfaces.
#[derive(Debug, Default)]
pub struct Told(AtomicU8);

/// What a client knows of the server's interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knows {
    /// It did not ask.
    Nothing,
    /// It asked, and none is capable of RDMA.
    NoneCapable,
    /// It asked, and at least one is.
    Capable,
}

impl Told {
    /// The client is told of these interfaces.
    pub fn note(&self, interfaces: &[NetworkInterface]) {
        let capable = |it: &NetworkInterface| it.capability.has(InterfaceCapability::RDMA);
        let knows =
            if interfaces.iter().any(capable) { Knows::Capable } else { Knows::NoneCapable };
        self.0.store(knows as u8, Ordering::Relaxed);
    }

    /// What it was told last.
    pub fn knows(&self) -> Knows {
        match self.0.load(Ordering::Relaxed) {
            0 => Knows::Nothing,
            1 => Knows::NoneCapable,
            _ => Knows::Capable,
        }
    }
}

/// What is known of a connection of a session.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// The session's dialect.
    pub dialect: Dialect,
    /// What carries the connection.
    pub carrier: Carrier,
    /// The server listens for SMB Direct.
    pub listens: bool,
    /// Another connection of the session goes by RDMA.
    pub beside: bool,
    /// What the client knows of the server's interfaces.
    pub knows: Knows,
    /// Requests of the session must be signed.
    pub signed: bool,
    /// Requests of the session must be encrypted.
    pub encrypted: bool,
    /// Encrypted data may go by RDMA on the connection: `Connection.RDMATransformIds` has encryption.
    pub seals_remote: bool,
}

/// Why its data do not go by RDMA; `None` if nothing that the server knows of is in the way.
pub fn why_not_rdma(facts: &Facts) -> Option<&'static str> {
    if !facts.dialect.is_smb3() {
        return Some("the client speaks SMB 2, which has no RDMA: have it speak SMB 3");
    }
    if facts.carrier == Carrier::Rdma {
        return match (facts.encrypted, facts.signed) {
            (true, _) if facts.seals_remote => None,
            (true, _) => Some(
                "the session is encrypted and the client knows no RDMA transform for that: data go in \
                 messages",
            ),
            (false, true) => Some(
                "requests are signed, and such that are not encrypted have their data in messages: encrypt \
                 the session, or let neither end require signatures",
            ),
            (false, false) => None,
        };
    }
    if !facts.listens {
        return Some("the server does not listen for SMB Direct: set server.rdma_listen");
    }
    if facts.beside {
        return Some("another connection of the session goes by RDMA: this one is kept beside it");
    }
    Some(match facts.knows {
        Knows::Nothing => {
            "the client did not ask for the server's interfaces: its multichannel is off, or it has no \
             RDMA"
        }
        Knows::NoneCapable => {
            "no interface that the client was told of has RDMA: let server.rdma_listen cover its \
             address, without rdma = false in [[interface]]"
        }
        Knows::Capable => {
            "the client was told where SMB Direct is and did not come: look at its RDMA card, and for a \
             firewall before the ports of server.rdma_listen"
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Facts = Facts {
        dialect: Dialect::SMB_3_1_1,
        carrier: Carrier::Tcp,
        listens: true,
        beside: false,
        knows: Knows::Capable,
        signed: false,
        encrypted: false,
        seals_remote: false,
    };

    fn said(facts: Facts) -> &'static str {
        why_not_rdma(&facts).unwrap_or("nothing")
    }

    #[test]
    fn each_obstacle_is_named_the_first_in_the_way_first() {
        let smb2 = Facts { dialect: Dialect::SMB_2_1, listens: false, ..OK };
        assert!(said(smb2).contains("speaks SMB 2"));
        assert!(said(Facts { listens: false, ..OK }).contains("server.rdma_listen"));
        assert!(said(Facts { beside: true, ..OK }).contains("another connection"));
        assert!(said(Facts { knows: Knows::Nothing, ..OK }).contains("did not ask"));
        assert!(said(Facts { knows: Knows::NoneCapable, ..OK }).contains("rdma = false"));
        assert!(said(OK).contains("did not come"));
    }

    #[test]
    fn a_connection_by_rdma_is_asked_whether_its_data_go_so_too() {
        let rdma = Facts { carrier: Carrier::Rdma, knows: Knows::Nothing, ..OK };
        assert_eq!(why_not_rdma(&rdma), None);
        assert!(said(Facts { signed: true, ..rdma }).contains("signed"));
        let encrypted = Facts { signed: true, encrypted: true, ..rdma };
        assert!(said(encrypted).contains("transform"));
        assert_eq!(why_not_rdma(&Facts { seals_remote: true, ..encrypted }), None);
        assert!(said(Facts { dialect: Dialect::SMB_2_0_2, ..rdma }).contains("SMB 2"));
    }

    #[test]
    fn what_a_client_was_told_last_is_known() {
        let told = Told::default();
        assert_eq!(told.knows(), Knows::Nothing);
        let interface = |capability| NetworkInterface {
            index: 1,
            capability,
            link_speed: 1,
            address: [127, 0, 0, 1].into(),
        };
        told.note(&[interface(InterfaceCapability::RSS)]);
        assert_eq!(told.knows(), Knows::NoneCapable);
        told.note(&[interface(InterfaceCapability::RSS), interface(InterfaceCapability::RDMA)]);
        assert_eq!(told.knows(), Knows::Capable);
        told.note(&[]);
        assert_eq!(told.knows(), Knows::NoneCapable);
    }
}
