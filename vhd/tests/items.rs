//! Metadata items of users: they come back, survive what is done to the image, are copied to
//! children and merged, and a crash leaves the old ones or the new ones.

mod common;

use std::{collections::BTreeMap, sync::Arc};

use block_io::{
    Disk, File,
    testing::{CrashFile, MemFile, Rng, Survival},
};
use common::{MIB, assert_clean, mem_image, open, read_all, small};
use proptest::prelude::*;
use vhd::{
    Error, Format, Guid, ops,
    vhdx::{self, CreateOptions, UserItem},
};

fn id(n: u8) -> Guid {
    Guid::from_bytes([n; 16])
}

fn item(n: u8, len: usize) -> UserItem {
    let value = (0..len).map(|i| (i as u8).wrapping_mul(7).wrapping_add(n)).collect();
    UserItem { id: id(n), of_disk: n.is_multiple_of(2), value }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Every item of an image, by its name.
async fn items(file: &Arc<dyn File>) -> BTreeMap<Guid, UserItem> {
    let mut found = BTreeMap::new();
    for info in vhdx::info(file.clone()).await.unwrap().user_items {
        let item = vhdx::user_item(file.clone(), info.id).await.unwrap().unwrap();
        assert_eq!((item.value.len(), item.of_disk), (info.length as usize, info.of_disk));
        found.insert(item.id, item);
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    #[test]
    fn items_are_a_map(
        steps in proptest::collection::vec(
            (0u8..12, prop_oneof![0usize..5000, Just(0), Just(1 << 20), 0usize..1 << 20], any::<bool>()),
            1..14,
        ),
    ) {
        run(async {
            let file: Arc<dyn File> = mem_image(&small(4 * MIB, MIB)).await;
            let disk = open(file.clone()).await;
            disk.write_at(MIB, &[9; 4096]).await.unwrap();
            disk.close().await.unwrap();
            let mut model = BTreeMap::new();
            for (n, len, remove) in steps {
                let before = vhdx::identity(file.clone()).await.unwrap().data_write_id;
                let changed = if remove {
                    let removed = vhdx::remove_user_item(file.clone(), id(n)).await.unwrap();
                    assert_eq!(removed, model.remove(&id(n)).is_some());
                    removed
                } else {
                    vhdx::set_user_item(file.clone(), &item(n, len)).await.unwrap();
                    model.insert(id(n), item(n, len));
                    true
                };
                let after = vhdx::identity(file.clone()).await.unwrap().data_write_id;
                assert_eq!(before != after, changed);
                assert_eq!(items(&file).await, model);
                assert_clean(file.clone()).await;
            }
            // They are not lost with what else is done to an image.
            ops::resize(file.clone(), Format::Vhdx, 140_000 * MIB, ops::ResizeOptions::default())
                .await
                .unwrap();
            ops::compact(file.clone(), Format::Vhdx, None, |_| {}).await.unwrap();
            let copy: Arc<dyn File> = Arc::new(MemFile::new());
            ops::clone(file.clone(), copy.clone(), Format::Vhdx, None, |_| {}).await.unwrap();
            for file in [file, copy] {
                assert_eq!(items(&file).await, model);
                assert_clean(file.clone()).await;
                let disk = open(file).await;
                let mut sector = [0; 4096];
                disk.read_at(MIB, &mut sector).await.unwrap();
                assert_eq!(sector, [9; 4096]);
            }
        });
    }
}

#[test]
fn too_much_is_refused_and_changes_nothing() {
    run(async {
        let file: Arc<dyn File> = mem_image(&small(4 * MIB, MIB)).await;
        let long = UserItem { id: id(1), of_disk: true, value: vec![0; (1 << 20) + 1] };
        let refused = vhdx::set_user_item(file.clone(), &long).await;
        assert!(matches!(refused, Err(Error::InvalidOptions(_))), "{refused:?}");
        let many: Vec<UserItem> = (0..1025u64)
            .map(|n| UserItem { id: Guid::from_fields(1, 2, 3, n), of_disk: true, value: vec![1] })
            .collect();
        let options = CreateOptions { user_items: many.clone(), ..small(4 * MIB, MIB) };
        let refused = vhdx::create(Arc::new(MemFile::new()), &options).await;
        assert!(matches!(refused, Err(Error::InvalidOptions(_))), "{refused:?}");
        let most = CreateOptions { user_items: many[1..].to_vec(), ..small(4 * MIB, MIB) };
        vhdx::create(file.clone(), &most).await.unwrap();
        assert_eq!(items(&file).await.len(), 1024);
        let refused = vhdx::set_user_item(file.clone(), &many[0]).await;
        assert!(matches!(refused, Err(Error::InvalidOptions(_))), "{refused:?}");
        // One that is there already may be changed.
        let other = UserItem { value: vec![2; 100], ..many[1].clone() };
        vhdx::set_user_item(file.clone(), &other).await.unwrap();
        assert_eq!(vhdx::user_item(file.clone(), other.id).await.unwrap(), Some(other));
        assert_clean(file).await;
    });
}

/// MS-VHDX 2.6.1.2: items of the disk go with the disk, those of the file stay with the file.
#[test]
fn children_have_the_items_of_the_disk_and_a_merge_takes_the_childs() {
    run(async {
        let parent: Arc<dyn File> = mem_image(&small(4 * MIB, MIB)).await;
        for n in [1, 2, 4] {
            vhdx::set_user_item(parent.clone(), &item(n, 1000)).await.unwrap();
        }
        let about = vhdx::info(parent.clone()).await.unwrap();
        let options = CreateOptions::child(&about, "parent.vhdx");
        let options = options.inheriting(parent.clone()).await.unwrap();
        let child: Arc<dyn File> = Arc::new(MemFile::new());
        vhdx::create(child.clone(), &options).await.unwrap();
        let expected = [2, 4].map(|n| (id(n), item(n, 1000)));
        assert_eq!(items(&child).await, expected.clone().into());

        vhdx::remove_user_item(child.clone(), id(2)).await.unwrap();
        vhdx::set_user_item(child.clone(), &item(6, 700_000)).await.unwrap();
        vhdx::set_user_item(child.clone(), &item(7, 10)).await.unwrap();
        ops::merge(child.clone(), parent.clone(), Format::Vhdx, None, |_| {}).await.unwrap();
        let merged = [item(1, 1000), item(4, 1000), item(6, 700_000)].map(|item| (item.id, item));
        assert_eq!(items(&parent).await, merged.into());
        // The child still knows its parent, whose content is another now.
        let found = vhdx::identity(parent.clone()).await.unwrap().data_write_id;
        assert_ne!(found, about.data_write_id);
        let told = vhdx::identity(child.clone()).await.unwrap().parent.unwrap();
        assert!(told.linkages().contains(&found));
        assert_clean(parent).await;
        assert_clean(child).await;
    });
}

#[test]
fn a_crash_leaves_the_old_items_or_the_new_ones() {
    const POINTS: u64 = 1000;
    let changes: [fn(&mut Rng) -> Vec<UserItem>; 2] = [
        |rng| vec![item(2, rng.below(3000) as usize), item(3, rng.below(70_000) as usize)],
        |_| vec![item(2, 900_000), item(9, 600_000)],
    ];
    let mut halves = 0;
    for point in 0..POINTS {
        run(async {
            let mut rng = Rng::new(point);
            let original = mem_image(&small(4 * MIB, MIB)).await;
            let disk = open(original.clone()).await;
            disk.write_at(0, &[5; 4096]).await.unwrap();
            disk.close().await.unwrap();
            vhdx::set_user_item(original.clone(), &item(2, 500)).await.unwrap();
            let content = read_all(&open(original.clone()).await).await;
            let new = changes[(point % 2) as usize](&mut rng);
            let plain: Arc<dyn File> = original.clone();
            let mut allowed = vec![items(&plain).await];
            for item in &new {
                let mut next = allowed[allowed.len() - 1].clone();
                next.insert(item.id, item.clone());
                allowed.push(next);
            }
            let file = Arc::new(CrashFile::new(&original, rng.next_u64()));
            file.fail_after(rng.below(70));
            let mut done = 0;
            for item in &new {
                if vhdx::set_user_item(file.clone(), item).await.is_err() {
                    break;
                }
                done += 1;
            }
            halves += u64::from(done < new.len());
            let left: Arc<dyn File> = Arc::new(file.crash(rng.next_u64(), Survival::Some));
            let report = vhdx::check(left.clone()).await.unwrap();
            assert!(report.is_clean(), "point {point}: {report:#?}");
            let found = items(&left).await;
            let at = allowed.iter().position(|items| *items == found);
            assert!(at.is_some_and(|at| at >= done), "point {point}: {done} done, {at:?}");
            assert!(read_all(&open(left.clone()).await).await == content, "point {point}");
            for item in &new {
                vhdx::set_user_item(left.clone(), item).await.unwrap();
            }
            assert_eq!(&items(&left).await, &allowed[new.len()], "point {point}: again");
            assert_clean(left).await;
        });
    }
    assert!(halves > POINTS / 3, "only {halves} points were within");
}
