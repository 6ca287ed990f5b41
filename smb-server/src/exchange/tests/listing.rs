//! Answers about folders and the file system, whole ones and those that do not fit.

use std::collections::BTreeMap;

use smb_protocol::{
    fscc::{
        directory::{CLASSES, Entry, fixed_len},
        fs_info,
    },
    msg::create::Disposition,
};
use volume::{fs::short::short_name, work::hurry};

use super::{
    files::{FILE, FOLDER, logged_in},
    *,
};

impl Direct {
    /// All entries of a folder, taken in answers of at most `room` bytes.
    pub(super) fn entries(
        &mut self,
        file_id: FileId,
        class: InfoClass,
        pattern: &str,
        room: u32,
    ) -> Vec<Entry> {
        self.answers(file_id, class, pattern, room).concat()
    }

    /// The same, each answer's by themselves.
    fn answers(
        &mut self,
        file_id: FileId,
        class: InfoClass,
        pattern: &str,
        room: u32,
    ) -> Vec<Vec<Entry>> {
        let mut all = Vec::new();
        let mut flags = query_directory::Flags::REOPEN;
        loop {
            let request = query_directory::Request {
                class,
                flags,
                file_id,
                output_len: room,
                pattern: pattern.into(),
                ..Default::default()
            };
            flags = query_directory::Flags::default();
            let (header, body) = self.ask(Command::QUERY_DIRECTORY, |out| request.encode(out));
            if header.status != NtStatus::SUCCESS {
                assert!([NtStatus::NO_MORE_FILES, NtStatus::NO_SUCH_FILE].contains(&header.status));
                return all;
            }
            let output = query_directory::Response::parse(&body).unwrap().output;
            assert!(output.len() <= room as usize);
            let list = Entry::parse_list(class, output).unwrap();
            assert!(!list.is_empty());
            all.push(list);
        }
    }

    pub(super) fn file_system(
        &mut self,
        file_id: FileId,
        class: u8,
        room: u32,
    ) -> (NtStatus, Vec<u8>) {
        let request = query_info::Request {
            info_type: query_info::InfoType::FILESYSTEM,
            class: InfoClass(class),
            output_len: room,
            file_id,
            ..Default::default()
        };
        let (header, body) = self.ask(Command::QUERY_INFO, |out| request.encode(out));
        match header.status {
            NtStatus::SUCCESS | NtStatus::BUFFER_OVERFLOW => {
                let output = query_directory::Response::parse(&body).unwrap().output.to_vec();
                (header.status, output)
            }
            status => (status, Vec::new()),
        }
    }
}

/// Whether `*` and `?` can mean a name, told one character after the other.
fn means(pattern: &[char], name: &[char]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        (['*', rest @ ..], _) => {
            means(rest, name) || !name.is_empty() && means(pattern, &name[1..])
        }
        (['?', rest @ ..], [_, left @ ..]) => means(rest, left),
        ([p, rest @ ..], [n, left @ ..]) => {
            p.to_uppercase().eq(n.to_uppercase()) && means(rest, left)
        }
        _ => false,
    }
}

/// The names in each answer.
fn names_of(answers: &[Vec<Entry>]) -> Vec<Vec<&str>> {
    answers.iter().map(|all| all.iter().map(|entry| entry.name.as_str()).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    /// Every name that the pattern means comes once, with its size, however little fits an answer.
    #[test]
    fn a_listing_is_the_folder_however_it_is_cut(
        files in prop::collection::btree_map("[a-c]{1,3}(é|[0-9]){0,2}", 0usize..3, 0..24),
        pattern in "[a-c?*]{1,4}",
        class in prop::sample::select(&CLASSES[..]),
        more in 0u32..600,
    ) {
        let mut direct = logged_in();
        let folder = direct.create("d", Disposition::CREATE, FOLDER).unwrap();
        for (name, len) in &files {
            let file = direct.create(&format!("d\\{name}"), Disposition::CREATE, FILE).unwrap();
            if *len > 0 {
                direct.store(file, &vec![1; *len]);
            }
            direct.close(file);
        }
        let wanted: Vec<char> = pattern.chars().collect();
        let expected: BTreeMap<String, usize> = files
            .into_iter()
            .filter(|(name, _)| {
                // By its short name, too (MS-FSA 2.1.5.6.3).
                let short = short_name(name).into_iter();
                short.chain([name.clone()]).any(|name| means(&wanted, &name.chars().collect::<Vec<_>>()))
            })
            .collect();
        // Room for the longest of the names at least.
        let room = fixed_len(class).unwrap() as u32 + 24 + more;
        let answers = direct.answers(folder, class, &pattern, room);
        // A search that has to go on beside the connection answers the same: a client may take a
        // short answer for the last.
        hurry::set(true);
        let hurried = direct.answers(folder, class, &pattern, room);
        hurry::set(false);
        prop_assert_eq!(names_of(&hurried), names_of(&answers));
        let found = answers.concat();
        let dots = found.iter().filter(|entry| entry.name == "." || entry.name == "..").count();
        let mut names = BTreeMap::new();
        for entry in found.iter().filter(|entry| entry.name != "." && entry.name != "..") {
            let size = if class == InfoClass::NAMES {
                expected.get(&entry.name).copied()
            } else {
                Some(entry.end_of_file as usize)
            };
            prop_assert!(names.insert(entry.name.clone(), size.unwrap_or(usize::MAX)).is_none());
        }
        prop_assert_eq!(names, expected);
        // "." and ".." are listed where everything is (MS-FSA 2.1.5.6.3).
        prop_assert_eq!(dots, if means(&wanted, &['.']) { 2 } else { 0 });
    }

    /// What the answers say is what the system says; with less room they are refused, or cut where
    /// a name stands at their end.
    #[test]
    fn the_file_system_is_told_as_it_is(room in 0u32..80, which in 0usize..7) {
        // The fixed parts, whole words of 8 bytes where a name follows (MS-FSA 2.1.5.13).
        let classes = [
            (fs_info::VOLUME, 24), (fs_info::SIZE, 24), (fs_info::DEVICE, 8),
            (fs_info::ATTRIBUTE, 16), (fs_info::CONTROL, 48), (fs_info::FULL_SIZE, 32),
            (fs_info::SECTOR_SIZE, 28),
        ];
        let (class, least) = classes[which];
        let mut direct = logged_in();
        let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
        let (status, whole) = direct.file_system(file, class, 60_000);
        prop_assert_eq!(status, NtStatus::SUCCESS);
        let (status, cut) = direct.file_system(file, class, room);
        let expected = match room as usize {
            room if room < least => NtStatus::INFO_LENGTH_MISMATCH,
            room if room < whole.len() => NtStatus::BUFFER_OVERFLOW,
            _ => NtStatus::SUCCESS,
        };
        prop_assert_eq!(status, expected);
        if ![fs_info::SIZE, fs_info::FULL_SIZE].contains(&class) {
            prop_assert_eq!(&whole[..cut.len()], &cut[..]);
        }
        let stat = rustix::fs::statvfs(direct.folder.path()).unwrap();
        if class == fs_info::FULL_SIZE {
            let space = fs_info::Space::parse_full_size(&whole).unwrap();
            let unit = u64::from(space.sectors_per_unit) * u64::from(space.bytes_per_sector);
            prop_assert_eq!(space.total * unit, stat.f_blocks * stat.f_frsize);
            prop_assert!(space.caller_free <= space.free && space.free <= space.total);
        }
    }
}
