//! The JSON Schemas of the files that a person writes for this host, for editors: its configuration and
//! VM files.

use clap::ValueEnum;
use host_api::VmDefinition;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Value, json};

use crate::config::Config;

/// Whose schema is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum File {
    /// The configuration of the host.
    Host,
    /// A VM file.
    Vm,
}

/// The schema of a kind of file (JSON Schema, draft 2020-12).
pub fn schema(of: File) -> Value {
    match of {
        File::Host => titled::<Config>("Configuration of hyperv-host"),
        File::Vm => titled::<VmDefinition>("VM file of hyperv-host"),
    }
}

fn titled<T: JsonSchema>(title: &str) -> Value {
    let generator = SchemaSettings::draft2020_12()
        .for_deserialize()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator();
    let mut whole = generator.into_root_schema_for::<T>().to_value();
    whole["title"] = json!(title);
    whole
}
