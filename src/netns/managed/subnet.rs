//! A range of addresses with a common beginning, of either family: `10.200.0.0/16`, `fd00:7::/64`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Compares by its first address, then by its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Subnet {
    first: IpAddr,
    prefix: u8,
}

/// Why something is no subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Not of the form ADDRESS/LENGTH.
    #[error("`{0}` is not of the form 10.200.0.0/16 or fd00:7::/64")]
    Form(String),
    /// It has bits that the length leaves out.
    #[error("{0} does not begin its range; {1} does")]
    NotTheFirst(IpAddr, Subnet),
}

impl Subnet {
    /// That of an address.
    ///
    /// # Errors
    /// When the length is more than the address has bits.
    pub fn of(address: IpAddr, prefix: u8) -> Result<Self, SubnetError> {
        if prefix > bits(address) {
            return Err(SubnetError::Form(format!("{address}/{prefix}")));
        }
        let host = u128::MAX.checked_shr(128 - u32::from(bits(address) - prefix)).unwrap_or(0);
        Ok(Self { first: address_of(address, number(address) & !host), prefix })
    }

    /// With which it begins.
    #[must_use]
    pub fn first(self) -> IpAddr {
        self.first
    }

    /// How many bits are common.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// How many bits are not.
    #[must_use]
    pub fn free_bits(self) -> u8 {
        bits(self.first) - self.prefix
    }

    /// How many addresses, as far as they can be counted.
    #[must_use]
    pub fn size(self) -> u128 {
        1_u128.checked_shl(u32::from(self.free_bits())).unwrap_or(u128::MAX)
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && Self::of(address, self.prefix) == Ok(self)
    }

    /// Whether all of the other's are.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        other.prefix >= self.prefix && self.contains(other.first)
    }

    /// Whether some are in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// That many after the first one.
    #[must_use]
    pub fn nth(self, offset: u128) -> Option<IpAddr> {
        (offset < self.size()).then(|| address_of(self.first, number(self.first) + offset))
    }

    /// How many after the first one.
    #[must_use]
    pub fn offset_of(self, address: IpAddr) -> Option<u128> {
        self.contains(address).then(|| number(address) - number(self.first))
    }

    /// The part of that number, when it is cut into parts of that length.
    #[must_use]
    pub fn part(self, prefix: u8, number: u32) -> Option<Self> {
        let shift = u32::from(bits(self.first).checked_sub(prefix)?);
        let first = self.nth(u128::from(number).checked_shl(shift)?)?;
        (prefix >= self.prefix).then_some(Self { first, prefix })
    }
}

impl Subnet {
    /// The half that leaves that part out; nothing when the part is in both.
    #[must_use]
    pub fn half_without(self, part: Self) -> Option<Self> {
        let half = |number| self.part(self.prefix.checked_add(1)?, number).filter(|half| !half.overlaps(part));
        half(0).or_else(|| half(1))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let form = || SubnetError::Form(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let subnet = Self::of(address, prefix.parse().map_err(|_| form())?).map_err(|_| form())?;
        if subnet.first == address { Ok(subnet) } else { Err(SubnetError::NotTheFirst(address, subnet)) }
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Of the family of `like`.
fn address_of(like: IpAddr, number: u128) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_counted_in_both_families() {
        assert_eq!(subnet("10.1.0.0/22").nth(1023).unwrap().to_string(), "10.1.3.255");
        assert_eq!(subnet("10.1.0.0/22").nth(1024), None);
        assert_eq!(subnet("fd00::/64").nth(0x1_0000).unwrap().to_string(), "fd00::1:0");
        assert_eq!(subnet("10.1.0.0/22").offset_of("10.1.1.0".parse().unwrap()), Some(256));
        assert_eq!(subnet("10.1.0.0/22").offset_of("10.1.4.0".parse().unwrap()), None);
        assert_eq!((subnet("0.0.0.0/0").size(), subnet("::/0").size(), subnet("::1/128").size()), (1 << 32, u128::MAX, 1));
    }

    #[test]
    fn parts_do_not_overlap_and_cover_the_whole() {
        let whole = subnet("10.1.0.0/20");
        let parts: Vec<Subnet> = (0..).map_while(|number| whole.part(22, number)).collect();
        assert_eq!(parts.iter().map(Subnet::to_string).collect::<Vec<_>>(), ["10.1.0.0/22", "10.1.4.0/22", "10.1.8.0/22", "10.1.12.0/22"]);
        assert!(parts.iter().all(|part| whole.covers(*part) && !part.covers(whole) && part.overlaps(whole)));
        assert!(!parts[0].overlaps(parts[1]));
        assert_eq!((whole.part(19, 0), whole.part(33, 0)), (None, None));
    }

    #[test]
    fn what_is_no_subnet_is_said() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "fd00::/129", "x/8", "10.0.0.0/-1"] {
            assert_eq!(text.parse::<Subnet>(), Err(SubnetError::Form(text.to_owned())), "{text}");
        }
        assert_eq!("10.0.0.7/24".parse::<Subnet>().unwrap_err().to_string(), "10.0.0.7 does not begin its range; 10.0.0.0/24 does");
        assert!(!subnet("0.0.0.0/0").contains("::1".parse().unwrap()));
    }
}
