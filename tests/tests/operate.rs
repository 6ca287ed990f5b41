//! Metrics, and what is made of their catalogue: what administrators have in files is what the programs
//! serve.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use bulkhead_tests::{
    Need, operate,
    port::Port,
    process::{foreign, ours, run},
    skip,
    smbd::{PASSWORD, Smbd, USER},
};
use metric_catalogue::{CATALOGUE, Kind, of_sample};
use serde_json::Value;
use smb_client::{Client, ConnectOptions, Create, Login, OpenOptions};

const LIMIT: Duration = Duration::from_secs(60);

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn files_are_what_the_catalogue_gives() {
    for (path, text) in operate::files() {
        let there = fs::read_to_string(project().join(&path)).unwrap_or_default();
        assert!(
            there == text,
            "{}: not as the catalogue has it: cargo run -p bulkhead-tests --bin operate",
            path.display()
        );
    }
}

/// What of a value a schema does not know: keys, and kinds of values.
fn unknown(schema: &Value, value: &Value, at: &str, into: &mut Vec<String>) {
    match value {
        Value::Object(all) => {
            let table = kinds(schema).into_iter().find(|it| is_kind(it, "object"));
            let Some(table) = table else { return into.push(format!("{at} is no table")) };
            for (key, value) in all {
                let at = format!("{at}.{key}");
                match table["properties"].get(key).or(table.get("additionalProperties")) {
                    Some(Value::Bool(false)) | None => into.push(at),
                    Some(schema) => unknown(schema, value, &at, into),
                }
            }
        }
        Value::Array(all) => {
            let list = kinds(schema).into_iter().find(|it| is_kind(it, "array"));
            let Some(list) = list else { return into.push(format!("{at} is no list")) };
            all.iter().for_each(|value| unknown(&list["items"], value, at, into));
        }
        value => {
            let is = |it: &Value| {
                let word = match value {
                    Value::String(_) => "string",
                    Value::Bool(_) => "boolean",
                    _ => "integer",
                };
                let known =
                    |values: &Value| values.as_array().is_none_or(|all| all.contains(value));
                let fits = is_kind(it, word);
                let one = it.get("const").is_none_or(|one| one == value);
                fits && known(&it["enum"]) && one
            };
            if !kinds(schema).into_iter().any(is) {
                into.push(format!("{at} is not {value}"));
            }
        }
    }
}

/// Whether a schema is of a kind of values, among others or alone.
fn is_kind(schema: &Value, word: &str) -> bool {
    let kind = &schema["type"];
    kind == word || kind.as_array().is_some_and(|all| all.contains(&word.into()))
}

/// The alternatives of a schema.
fn kinds(schema: &Value) -> Vec<&Value> {
    let any = ["anyOf", "oneOf"].iter().find_map(|key| schema[*key].as_array());
    any.map_or_else(|| vec![schema], |all| all.iter().flat_map(kinds).collect())
}

/// What is unknown to a schema of an example in the project, read with the keys that are commented out
/// in it.
fn unknown_of_example(schema: &Value, example: &str) -> Vec<String> {
    let text = fs::read_to_string(project().join(example)).unwrap();
    let is_key = |line: &str| {
        let word = line.split([' ', '=']).next().unwrap_or_default();
        (line.starts_with('[') && line.ends_with(']'))
            || line.contains(" = ") && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let lines = text.lines().filter_map(|line| {
        let line = line.strip_prefix("# ").unwrap_or(line);
        is_key(line).then_some(line)
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    let value: toml::Table = text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"));
    let value = serde_json::to_value(value).unwrap();
    assert!(value.as_object().unwrap().len() > 4, "the example is not read: {value}");
    let mut all = Vec::new();
    unknown(schema, &value, "", &mut all);
    all
}

#[test]
fn each_schema_is_that_of_its_program_and_knows_every_key_of_the_example() {
    for operate::Schema { path, command, example } in operate::SCHEMAS {
        let output = run(Command::new(ours(command[0])).args(&command[1..]), LIMIT);
        let printed = String::from_utf8(output.stdout).unwrap();
        let there = fs::read_to_string(project().join(path)).unwrap_or_default();
        assert!(printed == there, "{path}: cargo run -p bulkhead-tests --bin operate");
        let schema: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(unknown_of_example(&schema, example), [""; 0], "{path}");
    }
}

#[test]
fn a_schema_tells_wrong_keys_and_wrong_values() {
    let of = |at: usize| {
        let text = fs::read_to_string(project().join(operate::SCHEMAS[at].path)).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()
    };
    for (at, wrong) in [
        (0, "[server]\nlisten = []\nstat_dir = '/x'"),
        (0, "[server]\nsigning = 'perhaps'"),
        (0, "[[share]]\nread_only = 'yes'"),
        (1, "[storage]\nencryption = 'never'"),
        (1, "[[storage.server]]\nhost = 7"),
        (2, "memory = 7"),
        (2, "[[disk]]\nformat = 'vmdk'"),
    ] {
        let mut all = Vec::new();
        let value: toml::Table = wrong.parse().unwrap();
        unknown(&of(at), &serde_json::to_value(value).unwrap(), "", &mut all);
        assert_eq!(all.len(), 1, "{wrong}: {all:?}");
    }
}

#[test]
fn rules_and_board_name_metrics_of_the_catalogue_only() {
    for expression in operate::expressions() {
        let names = operate::names(expression);
        assert!(!names.is_empty(), "{expression}");
        for name in names {
            assert!(of_sample(name).is_some(), "{name} in {expression}");
        }
    }
    let unknown = operate::names("rate(bulkhead_smbd_requests[5m]) > bulkhead_x");
    assert!(unknown.iter().all(|name| of_sample(name).is_none()), "a wrong name is seen");
}

#[test]
fn every_metric_is_on_the_board_or_in_a_rule() {
    let named = operate::expressions();
    let named: Vec<_> =
        named.iter().flat_map(|it| operate::names(it)).filter_map(of_sample).collect();
    for metric in CATALOGUE {
        // How many tokens there are and which version runs nobody watches over time.
        let looked_up = [
            "bulkhead_smbd_build",
            "bulkhead_host_build",
            "bulkhead_smbd_offload_tokens",
            "bulkhead_target_sessions",
            "bulkhead_smbd_longest_turn_seconds",
        ];
        assert!(named.contains(metric) != looked_up.contains(&metric.name), "{}", metric.name);
    }
}

#[test]
fn rules_fire_when_they_must_and_only_then() {
    let Some(promtool) = foreign("promtool") else { return };
    let output = run(
        Command::new(&promtool).args(["check", "rules"]).arg(project().join(operate::RULES)),
        LIMIT,
    );
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let tests = project().join(operate::RULE_TESTS);
    let output = run(Command::new(&promtool).args(["test", "rules"]).arg(&tests), LIMIT);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("SUCCESS"), "{said}");
    // A rule that fires elsewhere is seen: the tests are tests.
    let folder = tempfile::tempdir().unwrap();
    let rules = fs::read_to_string(project().join(operate::RULES)).unwrap();
    let broken = rules.replace("> 50'", "> 5'");
    assert_ne!(broken, rules);
    fs::write(folder.path().join("bulkhead.rules.yml"), broken).unwrap();
    fs::copy(&tests, folder.path().join("t.yml")).unwrap();
    let output = run(
        Command::new(&promtool).args(["test", "rules"]).arg(folder.path().join("t.yml")),
        LIMIT,
    );
    assert!(!output.status.success());
}

fn page(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let (head, page) = page.split_once("\r\n\r\n").unwrap();
    assert!(
        head.contains("\r\nContent-Type: application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    page.to_owned()
}

/// The value of a sample.
fn value(page: &str, name: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{page}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_with_a_share_is_counted_for_it() {
    let port = Port::reserve();
    let server = Smbd::start(&format!("metrics = \"{}\"", port.address()), "");
    let login = || ConnectOptions::new("127.0.0.1", server.port(), Login::new(USER, PASSWORD));
    let session = Client::connect(login()).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let file = tree.open("a.bin", OpenOptions::create(Create::New)).await.unwrap();
    {
        use block_io::File;
        file.write_at(0, &[7; 100_000]).await.unwrap();
        for _ in 0..64 {
            file.read_at(0, &mut [0; 4096]).await.unwrap();
        }
    }
    let page = page(port.number());
    let of = |name: &str, kind: &str| {
        value(&page, &format!("bulkhead_smbd_share_{name}{{share=\"vms\",kind=\"{kind}\"}}"))
    };
    assert_eq!(of("operations_total", "read"), 64.0);
    assert_eq!(of("bytes_total", "read"), 64.0 * 4096.0);
    assert_eq!(of("bytes_total", "write"), 100_000.0);
    assert!(of("operations_total", "other") >= 1.0);
    assert!(of("seconds_count", "read") >= 3.0, "{page}");
    assert!(value(&page, "bulkhead_smbd_credits") > 0.0);
    assert_eq!(value(&page, "bulkhead_smbd_channels{transport=\"tcp\"}"), 1.0);
    assert_eq!(value(&page, "bulkhead_smbd_channels{transport=\"rdma\"}"), 0.0);
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        assert!(of_sample(name).is_some(), "{line} is not in the catalogue");
    }
    read_by_others(&page);
}

/// The page is read by a program that others wrote, and it finds of every metric the kind that the
/// catalogue has.
fn read_by_others(page: &str) {
    const READ: &str = "import sys\n\
        from prometheus_client.openmetrics.parser import text_string_to_metric_families\n\
        for family in text_string_to_metric_families(open(sys.argv[1]).read()):\n\
        \x20   print(family.name, family.type, family.unit or '-', len(family.samples))\n";
    // Debian's package is for Debian's Python, which need not be the first in the path.
    let python = "/usr/bin/python3";
    if !Path::new(python).exists() {
        skip(Need::Programs.because("python3 is not installed"));
        return;
    }
    let mut command = Command::new(python);
    let there = run(
        Command::new(python).args(["-c", "import prometheus_client.openmetrics.parser"]),
        LIMIT,
    );
    if !there.status.success() {
        skip(Need::Programs.because("python3-prometheus-client is not installed"));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("page"), page).unwrap();
    let output = run(command.args(["-c", READ]).arg(folder.path().join("page")), LIMIT);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.lines().count() > 15, "{said}");
    for line in said.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let metric = CATALOGUE.iter().find(|metric| metric.name == words[0]).unwrap();
        assert_eq!(metric.kind.name(), words[1], "{line}");
        assert_eq!(metric.unit.name().unwrap_or("-"), words[2], "{line}");
        assert!(metric.kind == Kind::Histogram || words[3] != "0", "{line}");
    }
}
