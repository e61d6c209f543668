//! Functions of an eBPF object and the calls between them.

use anyhow::{Context, Result, ensure};
use object::{
    Architecture, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionIndex,
    SectionKind, SymbolKind, read::File,
};

/// Bytes of one BPF instruction.
const INSTRUCTION: usize = 8;
/// First byte of a call, and the value of its source register that means "of a BPF function".
const CALL: u8 = 0x85;
const PSEUDO_CALL: u8 = 1;
/// The relocation of a call to a function elsewhere in the object.
const R_BPF_64_32: u32 = 10;

/// What the checks look at. Names of Rust functions are demangled, without hash.
pub(super) struct Contents {
    pub(super) symbols: Vec<String>,
    pub(super) functions: Vec<Function>,
    pub(super) calls: Vec<Call>,
}

/// An STT_FUNC symbol.
pub(super) struct Function {
    pub(super) name: String,
    pub(super) section: String,
}

/// A call from one function to another of the object; helpers of the kernel are none.
pub(super) struct Call {
    pub(super) from: String,
    pub(super) to: String,
}

impl Contents {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let file = File::parse(bytes).context("reading the ELF header")?;
        ensure!(
            file.architecture() == Architecture::Bpf,
            "this is no BPF object but {:?}",
            file.architecture()
        );
        let places = places(&file)?;
        let functions = places.iter().map(|place| place.function(&file)).collect::<Result<Vec<_>>>()?;
        ensure!(!functions.is_empty(), "it has no function symbols: was it stripped?");
        Ok(Self { symbols: names(&file), functions, calls: calls(&file, &places)? })
    }
}

/// Where a function begins.
struct Place {
    name: String,
    section: SectionIndex,
    at: u64,
}

impl Place {
    fn function(&self, file: &File<'_>) -> Result<Function> {
        let section = file.section_by_index(self.section).context("finding a function's section")?;
        let section = section.name().context("reading the name of a section")?.to_owned();
        Ok(Function { name: self.name.clone(), section })
    }
}

fn names(file: &File<'_>) -> Vec<String> {
    file.symbols().filter_map(|symbol| symbol.name().ok().map(demangled)).collect()
}

fn demangled(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

fn places(file: &File<'_>) -> Result<Vec<Place>> {
    let functions =
        file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition());
    functions
        .map(|symbol| {
            let name = demangled(symbol.name().context("reading the name of a function")?);
            let section = symbol.section_index().with_context(|| format!("{name} is in no section"))?;
            Ok(Place { name, section, at: symbol.address() })
        })
        .collect()
}

fn calls(file: &File<'_>, places: &[Place]) -> Result<Vec<Call>> {
    let mut calls = Vec::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let code = section.data().context("reading code")?;
        for (index, instruction) in code.chunks_exact(INSTRUCTION).enumerate() {
            if instruction[0] != CALL || instruction[1] >> 4 != PSEUDO_CALL {
                continue;
            }
            let at = (index * INSTRUCTION) as u64;
            let name = section.name().unwrap_or_default();
            let to = callee(file, &section, at, immediate(instruction), places)
                .with_context(|| format!("finding what {name}+{at:#x} calls"))?;
            let from = enclosing(places, section.index(), at);
            calls.push(Call { from: from.unwrap_or(name).to_owned(), to });
        }
    }
    Ok(calls)
}

/// The signed distance in instructions that a call carries, counted from the instruction after it.
fn immediate(instruction: &[u8]) -> i64 {
    i64::from(i32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]))
}

/// Calls within a section need no relocation; those to local functions of another name only its section.
fn callee<'data>(
    file: &File<'data>,
    section: &impl ObjectSection<'data>,
    at: u64,
    immediate: i64,
    places: &[Place],
) -> Result<String> {
    let is_call = |flags| matches!(flags, RelocationFlags::Elf { r_type: R_BPF_64_32 });
    let relocation = section.relocations().find(|(offset, how)| *offset == at && is_call(how.flags()));
    let (target, distance) = match relocation.map(|(_, how)| how.target()) {
        None => (section.index(), at as i64 + (immediate + 1) * INSTRUCTION as i64),
        Some(RelocationTarget::Symbol(index)) => {
            let symbol = file.symbol_by_index(index).context("reading the symbol of a relocation")?;
            if symbol.kind() != SymbolKind::Section {
                return Ok(demangled(symbol.name().context("reading the name of a symbol")?));
            }
            let section = symbol.section_index().context("a section symbol without section")?;
            (section, (immediate + 1) * INSTRUCTION as i64)
        }
        Some(other) => anyhow::bail!("a relocation of an unknown kind: {other:?}"),
    };
    let begins = |place: &&Place| place.section == target && i64::try_from(place.at) == Ok(distance);
    Ok(places.iter().find(begins).context("no function begins there")?.name.clone())
}

/// The function that covers `at`: the last one that begins before it.
fn enclosing(places: &[Place], section: SectionIndex, at: u64) -> Option<&str> {
    let before = places.iter().filter(|place| place.section == section && place.at <= at);
    before.max_by_key(|place| place.at).map(|place| place.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_names_are_demangled_without_hash() {
        assert_eq!(demangled("_ZN4core9panicking5panic17h0123456789abcdefE"), "core::panicking::panic");
        assert_eq!(demangled("from_pod"), "from_pod");
    }

    #[test]
    fn a_call_backwards_has_a_negative_distance() {
        assert_eq!(immediate(&[CALL, 0x10, 0, 0, 0xfe, 0xff, 0xff, 0xff]), -2);
    }

    #[test]
    fn a_call_belongs_to_the_function_that_covers_it() {
        let place = |name: &str, at| Place { name: name.to_owned(), section: SectionIndex(3), at };
        let places = [place("second", 64), place("first", 0)];
        assert_eq!(enclosing(&places, SectionIndex(3), 56), Some("first"));
        assert_eq!(enclosing(&places, SectionIndex(3), 64), Some("second"));
        assert_eq!(enclosing(&places, SectionIndex(4), 64), None);
    }

    #[test]
    fn a_program_of_this_machine_is_no_bpf_object() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = Contents::parse(&own).err().expect("it is refused");
        assert!(error.to_string().starts_with("this is no BPF object"), "{error}");
    }
}
