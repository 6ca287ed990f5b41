//! The JSON Schema of the configuration file, for editors: what each part of the program reads of it,
//! as one.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

/// The schema (JSON Schema, draft 2020-12).
pub fn schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .for_deserialize()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator();
    let mut whole = smb_server::config::schema(&mut generator).to_value();
    for part in [
        crate::iscsi::config::schema(&mut generator),
        crate::witness::config::schema(&mut generator),
        cluster::config::schema(&mut generator),
        http_api::config_schema(&mut generator),
    ] {
        let part = part.to_value();
        let properties = part["properties"].as_object().into_iter().flatten();
        for (key, schema) in properties {
            whole["properties"][key] = schema.clone();
        }
    }
    whole["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    whole["title"] = json!("Configuration of smbd");
    whole
}
