//! Logons that fail, at the socket.

use std::sync::atomic::Ordering;

use smb_protocol::{NtStatus, header::frame_prefix};

use super::peer::{House, KINDS, Peer};

#[test]
fn a_connection_is_ended_after_so_many_wrong_passwords() {
    let house = House::new(
        "signing='enabled'\nencryption='off'\n[limits]\nfailed_logon_ms=0\nfailed_logons_per_connection=3",
    );
    let mut peer = Peer::strange(&house, KINDS[1]);
    peer.negotiate();
    for _ in 0..3 {
        assert_eq!(peer.try_log_in("wrong"), Some(NtStatus::LOGON_FAILURE));
    }
    assert_eq!(peer.try_log_in("wrong"), None);
    // Others are not concerned.
    Peer::new(&house, KINDS[1]);
}

/// Refusals wait, and nobody with them: neither the one thread that others need, nor who logs on
/// rightly from the same address.
#[test]
fn refusals_wait_and_nobody_else_does() {
    let house = House::new(
        "signing='enabled'\nencryption='off'\n[limits]\nfailed_logon_ms=500\nfailed_logons_per_connection=3",
    );
    // One is known there.
    drop(Peer::new(&house, KINDS[1]));
    let begin = std::time::Instant::now();
    let mut guessers: Vec<_> = (0..28)
        .map(|_| {
            let mut peer = Peer::strange(&house, KINDS[1]);
            peer.negotiate();
            peer.begin_log_in("nobody", "wrong");
            peer
        })
        .collect();
    // 16 are free, and of the other twelve each waits half a second longer than the one before.
    Peer::new(&house, KINDS[1]);
    for peer in &mut guessers {
        assert_eq!(peer.end_log_in(), Some(NtStatus::LOGON_FAILURE));
    }
    assert!(begin.elapsed() >= std::time::Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn a_stranger_has_few_logons_under_way() {
    let house = House::new("");
    let mut peer = Peer::strange(&house, KINDS[1]);
    peer.negotiate();
    let tokens: Vec<_> = (0..3).map(|_| peer.begin_new_log_in()).collect();
    assert_eq!(
        tokens,
        [
            NtStatus::MORE_PROCESSING_REQUIRED,
            NtStatus::MORE_PROCESSING_REQUIRED,
            NtStatus::REQUEST_NOT_ACCEPTED,
        ]
    );
}

/// Who announces much, sends most of it and waits holds a part of what all strangers have together;
/// beyond that it is dropped, and who logs on with a password is let in all the same.
#[test]
fn strangers_hold_so_much_memory_together_and_no_more() {
    let house =
        House::new("signing='enabled'\nencryption='off'\n[limits]\nunauthenticated_bytes='256K'");
    let mut holders: Vec<_> = (0..16)
        .map(|_| {
            let mut peer = Peer::strange(&house, KINDS[1]);
            peer.negotiate();
            let mut frame = frame_prefix(60 << 10).unwrap().to_vec();
            frame.resize(59 << 10, 0xfe);
            peer.offer_frame(&frame);
            peer
        })
        .collect();
    // Each holds 55 KiB of what is counted: four have room.
    house.until(|_| {
        holders.retain_mut(|peer| !peer.has_ended());
        holders.len() <= 4
    });
    drop(Peer::new(&house, KINDS[1]));
    drop(holders);
    // What they held is free again.
    house.until(|server| server.unauthenticated_bytes.load(Ordering::Relaxed) == 0);
}
