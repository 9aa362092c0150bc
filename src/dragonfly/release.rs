//! The source's release, as AUX `df-ver` and INFO `dragonfly_version` write it: `df-v1.40.0-87-gf8eca6d0b`.

/// A release of Dragonfly. Ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl Release {
    /// From `df-v1.40.1` and the like; `None` if it is not of this shape.
    pub fn parse(text: &str) -> Option<Self> {
        let numbers = text.trim().strip_prefix("df-")?.trim_start_matches('v');
        let numbers = numbers.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut parts = numbers.split('.').map(|part| part.parse().ok());
        let (major, minor) = (parts.next()??, parts.next()??);
        let patch = parts.next().unwrap_or(Some(0))?;
        Some(Self { major, minor, patch })
    }

    /// From the text of `INFO SERVER`.
    pub fn from_info(info: &str) -> Option<Self> {
        info.lines().find_map(|line| Self::parse(line.strip_prefix("dragonfly_version:")?))
    }
}

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let release = |major, minor, patch| Some(Release { major, minor, patch });
        assert_eq!(Release::parse("df-v1.40.1"), release(1, 40, 1));
        assert_eq!(Release::parse("df-v1.40.0-87-gf8eca6d0b"), release(1, 40, 0));
        assert_eq!(Release::parse("df-1.4"), release(1, 4, 0));
        for bad in ["", "df-", "df-dev", "v1.2.3", "df-v1", "df-v1.x.3", "df-v99999999999.1.1"] {
            assert_eq!(Release::parse(bad), None, "{bad}");
        }
        let info = "# Server\r\nredis_version:7.4.0\r\ndragonfly_version:df-v1.27.3\r\n";
        assert_eq!(Release::from_info(info), release(1, 27, 3));
        assert_eq!(Release::from_info("redis_version:7.4.0\r\n"), None);
    }
}
