//! Initiators that send anything.

use proptest::prelude::*;

use super::*;
use crate::cdb::{Command, Features, TABLE, find, parse};

/// A command of the table with its fields at random, or a little beside it.
fn cdb() -> impl Strategy<Value = Vec<u8>> {
    let field = prop_oneof![
        4 => Just(0u8),
        2 => 0..16u8,
        1 => any::<u8>(),
    ];
    let bytes = proptest::collection::vec(field, 32);
    (0..TABLE.len(), bytes, any::<bool>(), 0..40usize).prop_map(|(row, bytes, honest, cut)| {
        let entry = &TABLE[row];
        let mut cdb: Vec<u8> = entry
            .usage
            .iter()
            .zip(&bytes)
            .map(|(used, byte)| if honest { byte & used } else { *byte })
            .collect();
        cdb[0] = entry.code;
        if let Some(action) = entry.action {
            cdb[1] = cdb[1] & !0x1f | action;
        }
        if cut < cdb.len() && !honest {
            cdb.truncate(cut.max(1));
        }
        cdb
    })
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        proptest::collection::vec(any::<u8>(), 0..64),
        proptest::collection::vec(0..4u8, 0..600),
        proptest::collection::vec(0..2u8, 512..=1024),
    ]
}

/// The allocation length of commands that have one.
fn allocation(cdb: &[u8]) -> Option<u32> {
    let entry = find(cdb, Features::ALL).ok()?;
    match parse(entry, Features::ALL, cdb).ok()? {
        Command::RequestSense { allocation, .. }
        | Command::Inquiry { allocation, .. }
        | Command::ReadCapacity16 { allocation }
        | Command::ReadDefectData { allocation, .. }
        | Command::GetLbaStatus { allocation, .. }
        | Command::ReportLuns { allocation, .. }
        | Command::ReportOpcodes { allocation, .. }
        | Command::ReportTaskManagement { allocation, .. }
        | Command::ReportTargetPortGroups { allocation, .. }
        | Command::PersistentReserveIn { allocation, .. }
        | Command::CopyStatus { allocation, .. }
        | Command::CopyParameters { allocation }
        | Command::RodTokenInformation { allocation, .. } => Some(allocation),
        Command::ModeSense(request) => Some(request.allocation),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn nothing_that_is_sent_breaks_anything(
        commands in proptest::collection::vec((1..5u64, cdb(), data()), 1..40)
    ) {
        run(async {
            let options = UnitsOptions {
                store: Some(Arc::new(MemStore::default())),
                alua: Alua { implicit: true, explicit: true },
                ..UnitsOptions::default()
            };
            let bench = Bench::with(512, options, |unit| {
                unit.removable = true;
                unit.atomic_blocks = 8;
            }).await;
            let size = bench.file.len().await.expect("memory");
            for (id, cdb, data) in &commands {
                let answer = bench.send(*id, cdb, data).await;
                if let Some(allocation) = allocation(cdb) {
                    assert!(answer.data.len() <= allocation as usize, "{cdb:02x?}");
                }
                let failed = answer.status() == Status::CheckCondition;
                assert_eq!(failed, answer.end.sense.is_some(), "{cdb:02x?}");
                if answer.status() != Status::Good {
                    assert!(answer.data.is_empty(), "{cdb:02x?}");
                }
                let key = answer.code().map(|it| it.0);
                assert!(!matches!(key, Some(SenseKey::HardwareError)), "{cdb:02x?}");
            }
            // Nothing was written behind the end of the unit.
            assert_eq!(bench.file.len().await.expect("memory"), size);
        });
    }
}
