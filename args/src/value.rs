//! Parsers of values. Each error says what the option takes, and its range.

use std::ops::RangeInclusive;

/// The largest [`size`]: a float holds every whole number up to it.
pub const SIZE_LIMIT: u64 = 1 << 53;

/// A parser of whole numbers in a range.
pub fn whole<T: TryFrom<u64> + 'static>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| format!("give a whole number from {} to {}", range.start(), range.end()))
    }
}

/// The bytes that a size means, 1 to [`SIZE_LIMIT`]: a number, and K, M, G or T (of 1024), with or without B or iB.
pub fn size(text: &str) -> Option<u64> {
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let (digits, shift) = units
        .into_iter()
        .find_map(|(unit, shift)| bare.strip_suffix(unit).map(|digits| (digits, shift)))
        .unwrap_or((bare, 0));
    let bytes = digits.parse::<f64>().ok()? * (1u64 << shift) as f64;
    (1.0..=SIZE_LIMIT as f64).contains(&bytes).then_some(bytes as u64)
}

/// A parser of a [`size`]; `examples` are what its error suggests.
pub fn bytes<T: TryFrom<u64> + 'static>(
    examples: &'static str,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let bytes = size(text).and_then(|bytes| T::try_from(bytes).ok());
        bytes.ok_or_else(|| format!("give a size, such as {examples}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_have_a_range() {
        let threads = whole::<u16>(1..=64);
        assert_eq!((threads("1"), threads("64")), (Ok(1), Ok(64)));
        for text in ["0", "65", "-1", "two", "", "1.5", "1e1", "99999999999999999999999", "nan", "é"] {
            assert_eq!(threads(text), Err("give a whole number from 1 to 64".into()), "{text}");
        }
        assert_eq!(whole::<u64>(0..=u64::MAX)("18446744073709551615"), Ok(u64::MAX));
        assert!(whole::<u8>(0..=1000)("256").is_err());
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("1.5g", 3 << 29),
            ("64MiB", 64 << 20),
            ("100KB", 100 << 10),
            ("1048576", 1 << 20),
            ("1", 1),
            ("2T", 2 << 40),
            ("8192T", SIZE_LIMIT),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        let bad = [
            "", "M", "-1M", "0", "0.5", "1X", "nan", "inf", "infM", "8193T", "1e30G", "1 M", "64KK", "é",
            "iB",
        ];
        for text in bad {
            assert_eq!(size(text), None, "{text}");
            assert_eq!(bytes::<u64>("64M")(text), Err("give a size, such as 64M".into()));
        }
        assert_eq!((bytes("64M")("1K"), bytes::<u8>("64")("1K").is_err()), (Ok(1024_usize), true));
    }
}
