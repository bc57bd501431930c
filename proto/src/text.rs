//! Bounded text and bytes: `heapless` containers with the encoded-size bound that a ring slot needs.
//!
//! Both encode as a length and that many bytes. Decoding refuses what does not fit or is not UTF-8.

use core::fmt;
use core::ops::Deref;

use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use postcard_schema::schema::{DataModelType, NamedType};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes that a varint of `n` takes.
const fn varint_len(n: usize) -> usize {
    let mut len = 1;
    let mut rest = n >> 7;
    while rest > 0 {
        len += 1;
        rest >>= 7;
    }
    len
}

/// At most `N` bytes of UTF-8.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text<const N: usize>(heapless::String<N>);

/// The value does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl<const N: usize> Text<N> {
    /// Empty text.
    pub const fn new() -> Self {
        Self(heapless::String::new())
    }

    /// As much of `text` as fits, cut at a character boundary.
    pub fn truncated(text: &str) -> Self {
        let mut end = text.len().min(N);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(heapless::String::try_from(&text[..end]).unwrap_or_default())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Appends a character.
    ///
    /// # Errors
    /// [`TooLong`] when it does not fit.
    pub fn push(&mut self, c: char) -> Result<(), TooLong> {
        self.0.push(c).map_err(|_| TooLong)
    }
}

impl<const N: usize> TryFrom<&str> for Text<N> {
    type Error = TooLong;
    fn try_from(text: &str) -> Result<Self, TooLong> {
        heapless::String::try_from(text).map(Self).map_err(|_| TooLong)
    }
}

impl<const N: usize> Deref for Text<N> {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.0.push_str(s).map_err(|_| fmt::Error)
    }
}

impl<const N: usize> MaxSize for Text<N> {
    const POSTCARD_MAX_SIZE: usize = N + varint_len(N);
}

impl<const N: usize> Schema for Text<N> {
    const SCHEMA: &'static NamedType = &NamedType { name: "Text", ty: &DataModelType::String };
}

impl<const N: usize> Serialize for Text<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de, const N: usize> Deserialize<'de> for Text<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor<const N: usize>;
        impl<const N: usize> Visitor<'_> for TextVisitor<N> {
            type Value = Text<N>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {N} bytes of text")
            }
            fn visit_str<E: Error>(self, v: &str) -> Result<Text<N>, E> {
                Text::try_from(v).map_err(|_| E::invalid_length(v.len(), &self))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// At most `N` bytes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bytes<const N: usize>(heapless::Vec<u8, N>);

impl<const N: usize> Bytes<N> {
    /// No bytes.
    pub const fn new() -> Self {
        Self(heapless::Vec::new())
    }

    /// As many of `bytes` as fit.
    pub fn truncated(bytes: &[u8]) -> Self {
        let end = bytes.len().min(N);
        Self(heapless::Vec::from_slice(&bytes[..end]).unwrap_or_default())
    }
}

impl<const N: usize> TryFrom<&[u8]> for Bytes<N> {
    type Error = TooLong;
    fn try_from(bytes: &[u8]) -> Result<Self, TooLong> {
        heapless::Vec::from_slice(bytes).map(Self).map_err(|_| TooLong)
    }
}

impl<const N: usize> Deref for Bytes<N> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<const N: usize> fmt::Debug for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl<const N: usize> MaxSize for Bytes<N> {
    const POSTCARD_MAX_SIZE: usize = N + varint_len(N);
}

impl<const N: usize> Schema for Bytes<N> {
    const SCHEMA: &'static NamedType = &NamedType { name: "Bytes", ty: &DataModelType::ByteArray };
}

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor<const N: usize>;
        impl<'de, const N: usize> Visitor<'de> for BytesVisitor<N> {
            type Value = Bytes<N>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {N} bytes")
            }
            fn visit_bytes<E: Error>(self, v: &[u8]) -> Result<Bytes<N>, E> {
                Bytes::try_from(v).map_err(|_| E::invalid_length(v.len(), &self))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Bytes<N>, A::Error> {
                let mut bytes = heapless::Vec::new();
                while let Some(byte) = seq.next_element()? {
                    bytes.push(byte).map_err(|_| A::Error::invalid_length(N + 1, &self))?;
                }
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_bytes(BytesVisitor)
    }
}

/// At most `N` values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(serialize = "T: Serialize", deserialize = "T: Deserialize<'de>"))]
pub struct List<T, const N: usize>(heapless::Vec<T, N>);

impl<T, const N: usize> Default for List<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, const N: usize> List<T, N> {
    /// An empty list.
    pub const fn new() -> Self {
        Self(heapless::Vec::new())
    }

    /// Appends a value.
    ///
    /// # Errors
    /// [`TooLong`] when the list is full.
    pub fn push(&mut self, value: T) -> Result<(), TooLong> {
        self.0.push(value).map_err(|_| TooLong)
    }
}

impl<T, const N: usize> Deref for List<T, N> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: MaxSize, const N: usize> MaxSize for List<T, N> {
    const POSTCARD_MAX_SIZE: usize = N * T::POSTCARD_MAX_SIZE + varint_len(N);
}

impl<T: Schema, const N: usize> Schema for List<T, N> {
    const SCHEMA: &'static NamedType = &NamedType { name: "List", ty: &DataModelType::Seq(T::SCHEMA) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_too_long_is_refused_by_the_decoder() {
        let mut buffer = [0; 32];
        let long: Text<16> = Text::try_from("0123456789").unwrap();
        let used = postcard::to_slice(&long, &mut buffer).unwrap();
        assert!(postcard::from_bytes::<Text<9>>(used).is_err());
        assert_eq!(postcard::from_bytes::<Text<10>>(used).unwrap().as_str(), "0123456789");
    }

    #[test]
    fn truncation_respects_characters() {
        assert_eq!(Text::<4>::truncated("abcé").as_str(), "abc");
    }
}
