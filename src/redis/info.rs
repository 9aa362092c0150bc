//! The text of INFO: lines `name:value`, sections headed by `# Name`.

use std::collections::HashMap;

/// The fields of an INFO text by name. Lines that are no fields are passed over; of a repeated name the first counts.
#[derive(Clone, Debug, Default)]
pub struct Info<'a> {
    fields: HashMap<&'a str, &'a str>,
}

impl<'a> Info<'a> {
    pub fn parse(text: &'a str) -> Self {
        let mut fields = HashMap::new();
        for line in text.lines() {
            if let Some((name, value)) = line.trim_end().split_once(':')
                && !name.starts_with('#')
            {
                fields.entry(name).or_insert(value);
            }
        }
        Self { fields }
    }

    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.fields.get(name).copied()
    }

    /// A field that is a number.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.get(name)?.parse().ok()
    }

    /// Number of keys by database (`db0:keys=1,expires=0,...`), ascending.
    pub fn keys_by_db(&self) -> Vec<(u32, u64)> {
        let mut dbs: Vec<(u32, u64)> = self
            .fields
            .iter()
            .filter_map(|(name, value)| {
                let db = name.strip_prefix("db")?.parse().ok()?;
                let keys = value.split(',').find_map(|part| part.strip_prefix("keys="))?.parse().ok()?;
                Some((db, keys))
            })
            .collect();
        dbs.sort_unstable();
        dbs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_sections_and_keyspace() {
        let info = Info::parse(
            "# Server\r\nredis_version:7.0.15\r\nexecutable:/a:b\r\n\r\n# Keyspace\r\ndb1:keys=7,expires=0,avg_ttl=0\r\ndb0:keys=3,expires=1\r\n",
        );
        assert_eq!(info.get("redis_version"), Some("7.0.15"));
        assert_eq!(info.get("executable"), Some("/a:b"));
        assert_eq!(info.get("# Server"), None);
        assert_eq!(info.keys_by_db(), [(0, 3), (1, 7)]);
    }
}
