//! An interpreter of the instructions that a pickle of tensors needs. Nothing is ever executed: a class is a name from a short
//! list, and what is not on it is refused by its name.

use std::collections::HashMap;

use super::tensor::{Storage, Tensor};

/// Values that a pickle may make at most: some forty for each tensor.
const VALUES: usize = 4 << 20;
/// The longest text, in bytes.
const TEXT: usize = 64 << 10;

/// What is made. Everything but numbers lies in lists of the machine, so that values are small, and no cycle or depth can hurt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float,
    Text(usize),
    Tuple(usize),
    List(usize),
    Dict(usize),
    Class(Class),
    Storage(usize),
    Tensor(usize),
}

/// The classes and functions that are known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Class {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    /// A storage of elements of this type, by torch's name.
    Storage(&'static str),
}

const CLASSES: [(&str, &str, Class); 17] = [
    ("collections", "OrderedDict", Class::OrderedDict),
    ("torch._utils", "_rebuild_tensor", Class::RebuildTensor),
    ("torch._utils", "_rebuild_tensor_v2", Class::RebuildTensor),
    ("torch._utils", "_rebuild_parameter", Class::RebuildParameter),
    ("torch", "FloatStorage", Class::Storage("F32")),
    ("torch", "HalfStorage", Class::Storage("F16")),
    ("torch", "BFloat16Storage", Class::Storage("BF16")),
    ("torch", "DoubleStorage", Class::Storage("F64")),
    ("torch", "LongStorage", Class::Storage("I64")),
    ("torch", "IntStorage", Class::Storage("I32")),
    ("torch", "ShortStorage", Class::Storage("I16")),
    ("torch", "CharStorage", Class::Storage("I8")),
    ("torch", "ByteStorage", Class::Storage("U8")),
    ("torch", "BoolStorage", Class::Storage("BOOL")),
    ("torch", "ComplexFloatStorage", Class::Storage("C64")),
    ("torch", "Float8_e4m3fnStorage", Class::Storage("F8_E4M3")),
    ("torch", "Float8_e5m2Storage", Class::Storage("F8_E5M2")),
];

/// What is wrong, and where in the pickle.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) reason: String,
}

type Outcome<T> = Result<T, Fault>;

/// Reads one pickle.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the instruction is that is being carried out.
    now: usize,
    made: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    pub(super) texts: Vec<&'a str>,
    pub(super) tuples: Vec<Vec<Value>>,
    pub(super) lists: Vec<Vec<Value>>,
    pub(super) dicts: Vec<Vec<(Value, Value)>>,
    pub(super) storages: Vec<Storage<'a>>,
    pub(super) tensors: Vec<Tensor>,
}

impl<'a> Machine<'a> {
    /// Reads the pickle at the start of `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            now: 0,
            made: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            texts: Vec::new(),
            tuples: Vec::new(),
            lists: Vec::new(),
            dicts: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// Bytes read.
    pub(super) fn length(&self) -> usize {
        self.at
    }

    fn fault<T>(&self, reason: impl Into<String>) -> Outcome<T> {
        Err(Fault { at: self.now, reason: reason.into() })
    }

    fn take(&mut self, length: usize) -> Outcome<&'a [u8]> {
        let bytes = self.at.checked_add(length).and_then(|end| self.bytes.get(self.at..end));
        let Some(bytes) = bytes else { return self.fault("ends within an instruction: is the file cut?") };
        self.at += length;
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        Ok(self.take(N)?.first_chunk().copied().unwrap_or([0; N]))
    }

    fn line(&mut self) -> Outcome<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(end) = rest.iter().take(TEXT).position(|byte| *byte == b'\n') else {
            return self.fault("ends within a line: is the file cut?");
        };
        let line = self.take(end + 1)?;
        self.text(&line[..end])
    }

    fn text(&self, bytes: &'a [u8]) -> Outcome<&'a str> {
        match str::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(_) => self.fault("a text is not UTF-8: is the file damaged?"),
        }
    }

    fn push(&mut self, value: Value) -> Outcome<()> {
        self.made += 1;
        if self.made > VALUES {
            return self.fault(format!("makes more than {VALUES} values: is it the right file?"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Outcome<Value> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => Ok(self.stack.pop().unwrap_or(Value::None)),
            false => self.fault("takes a value that is not there: is the file damaged?"),
        }
    }

    fn pop_to_mark(&mut self) -> Outcome<Vec<Value>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark.min(self.stack.len()))),
            None => self.fault("closes what was not opened: is the file damaged?"),
        }
    }

    fn last(&mut self) -> Outcome<Value> {
        let value = self.pop()?;
        self.stack.push(value);
        Ok(value)
    }

    fn push_text(&mut self, length: usize) -> Outcome<()> {
        if length > TEXT {
            return self.fault(format!("has a text of {length} bytes, at most {TEXT} are read"));
        }
        let bytes = self.take(length)?;
        let text = self.text(bytes)?;
        self.texts.push(text);
        self.push(Value::Text(self.texts.len() - 1))
    }

    fn push_tuple(&mut self, values: Vec<Value>) -> Outcome<()> {
        self.tuples.push(values);
        self.push(Value::Tuple(self.tuples.len() - 1))
    }

    fn tuple_of(&mut self, count: usize) -> Outcome<()> {
        let mut values = (0..count).map(|_| self.pop()).collect::<Outcome<Vec<_>>>()?;
        values.reverse();
        self.push_tuple(values)
    }

    fn get(&mut self, index: u32) -> Outcome<()> {
        match self.memo.get(&index) {
            Some(value) => self.push(*value),
            None => self.fault(format!("recalls value {index}, which was not kept: is the file damaged?")),
        }
    }

    fn put(&mut self, index: u32) -> Outcome<()> {
        self.made += 1;
        let value = self.last()?;
        self.memo.insert(index, value);
        Ok(())
    }

    /// Carries out instructions to the end and gives what is made.
    pub(super) fn run(&mut self) -> Outcome<Value> {
        loop {
            self.now = self.at;
            let [instruction] = self.number()?;
            match instruction {
                0x80 => drop(self.number::<1>()?),
                // A frame's length.
                0x95 => drop(self.number::<8>()?),
                b'.' => return self.pop(),
                b'(' => {
                    self.made += 1;
                    self.marks.push(self.stack.len());
                }
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_to_mark()?),
                b'N' => self.push(Value::None)?,
                0x88 => self.push(Value::Bool(true))?,
                0x89 => self.push(Value::Bool(false))?,
                b'J' => {
                    let number = i32::from_le_bytes(self.number()?);
                    self.push(Value::Int(number.into()))?;
                }
                b'K' => {
                    let number = self.number::<1>()?[0];
                    self.push(Value::Int(number.into()))?;
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.number()?);
                    self.push(Value::Int(number.into()))?;
                }
                0x8a => self.long()?,
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Float)?;
                }
                b'U' | 0x8c => {
                    let length = self.number::<1>()?[0];
                    self.push_text(length.into())?;
                }
                b'X' | b'T' => {
                    let length = u32::from_le_bytes(self.number()?);
                    self.push_text(length as usize)?;
                }
                b')' => self.push_tuple(Vec::new())?,
                0x85..=0x87 => self.tuple_of(usize::from(instruction - 0x84))?,
                b't' => {
                    let values = self.pop_to_mark()?;
                    self.push_tuple(values)?;
                }
                b']' => {
                    self.lists.push(Vec::new());
                    self.push(Value::List(self.lists.len() - 1))?;
                }
                b'}' => self.push_dict()?,
                b'a' => {
                    let value = self.pop()?;
                    self.extend_list(vec![value])?;
                }
                b'e' => {
                    let values = self.pop_to_mark()?;
                    self.extend_list(values)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.extend_dict(vec![key, value])?;
                }
                b'u' => {
                    let values = self.pop_to_mark()?;
                    self.extend_dict(values)?;
                }
                b'q' => {
                    let index = self.number::<1>()?[0];
                    self.put(index.into())?;
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.number()?);
                    self.put(index)?;
                }
                0x94 => self.put(self.memo.len() as u32)?,
                b'h' => {
                    let index = self.number::<1>()?[0];
                    self.get(index.into())?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.number()?);
                    self.get(index)?;
                }
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.class(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (self.as_text(module), self.as_text(name)) {
                        (Some(module), Some(name)) => self.class(module, name)?,
                        _ => return self.fault("names a class by what is no text"),
                    }
                }
                b'Q' => self.storage()?,
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                other => {
                    return self.fault(format!(
                        "has the instruction {}, which no pickle of tensors needs and which is not carried out: save the tensors alone with torch.save, or as safetensors",
                        instruction_name(other)
                    ));
                }
            }
        }
    }

    /// The text that a value is.
    pub(super) fn as_text(&self, value: Value) -> Option<&'a str> {
        match value {
            Value::Text(index) => self.texts.get(index).copied(),
            _ => None,
        }
    }

    /// The values of a tuple.
    pub(super) fn as_tuple(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Tuple(index) => self.tuples.get(index).map(Vec::as_slice),
            _ => None,
        }
    }

    /// A whole number of up to eight bytes.
    fn long(&mut self) -> Outcome<()> {
        let length = usize::from(self.number::<1>()?[0]);
        let bytes = self.take(length)?;
        if length > 8 {
            // The number that an old file begins with; none is needed that is longer.
            return self.push(Value::Float);
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut whole = [if negative { 0xff } else { 0 }; 8];
        whole[..length].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(whole)))
    }

    fn push_dict(&mut self) -> Outcome<()> {
        self.dicts.push(Vec::new());
        self.push(Value::Dict(self.dicts.len() - 1))
    }

    fn extend_list(&mut self, values: Vec<Value>) -> Outcome<()> {
        match self.last()? {
            Value::List(index) => {
                self.lists[index].extend(values);
                Ok(())
            }
            _ => self.fault("appends to what is no list"),
        }
    }

    fn extend_dict(&mut self, values: Vec<Value>) -> Outcome<()> {
        let Value::Dict(index) = self.last()? else { return self.fault("puts keys into what has none") };
        let (pairs, rest) = values.as_chunks::<2>();
        if !rest.is_empty() {
            return self.fault("puts a key without a value");
        }
        self.dicts[index].extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    fn class(&mut self, module: &str, name: &str) -> Outcome<()> {
        match CLASSES.into_iter().find(|known| (known.0, known.1) == (module, name)) {
            Some((_, _, class)) => self.push(Value::Class(class)),
            None => self.fault(format!(
                "names `{module}.{name}`, which no pickle of tensors needs and which is not carried out: save the tensors alone with torch.save, or as safetensors"
            )),
        }
    }

    /// A storage by `("storage", class, key, device, count)`, and in old files a view, which is none of a tensor's.
    fn storage(&mut self) -> Outcome<()> {
        let value = self.pop()?;
        let parts = self.as_tuple(value).unwrap_or_default();
        let (Some(&[kind, class, key, _, count]), rest) =
            (parts.first_chunk(), parts.get(5..).unwrap_or_default())
        else {
            return self.fault("refers to a storage in an unknown way");
        };
        let (Some("storage"), Value::Class(Class::Storage(dtype)), Some(key), Value::Int(count), true) = (
            self.as_text(kind),
            class,
            self.as_text(key),
            count,
            rest.iter().all(|value| *value == Value::None),
        ) else {
            return self.fault("refers to a storage in an unknown way");
        };
        let Ok(count) = u64::try_from(count) else {
            return self.fault(format!("has a storage of {count} elements"));
        };
        self.storages.push(Storage { dtype, key, count });
        self.push(Value::Storage(self.storages.len() - 1))
    }

    fn reduce(&mut self) -> Outcome<()> {
        let (arguments, class) = (self.pop()?, self.pop()?);
        let Some(arguments) = self.as_tuple(arguments).filter(|all| all.len() <= 16).map(<[Value]>::to_vec)
        else {
            return self.fault("makes an object in a way that is not known");
        };
        match (class, &arguments[..]) {
            (Value::Class(Class::OrderedDict), []) => self.push_dict(),
            (Value::Class(Class::OrderedDict), [Value::List(index)]) if self.lists[*index].is_empty() => {
                self.push_dict()
            }
            (Value::Class(Class::RebuildParameter), [tensor @ Value::Tensor(_), ..]) => self.push(*tensor),
            (
                Value::Class(Class::RebuildTensor),
                [Value::Storage(storage), Value::Int(offset), size, stride, ..],
            ) => {
                let sizes = self.sizes(*size)?;
                let strides = self.sizes(*stride)?;
                let Ok(offset) = u64::try_from(*offset) else {
                    return self.fault(format!("has a tensor at {offset}"));
                };
                match Tensor::new(*storage, &self.storages[*storage], offset, sizes, strides) {
                    Ok(tensor) => self.tensors.push(tensor),
                    Err(reason) => return self.fault(reason),
                }
                self.push(Value::Tensor(self.tensors.len() - 1))
            }
            _ => self.fault("makes an object in a way that is not known"),
        }
    }

    /// A tuple of whole numbers from 0.
    fn sizes(&self, value: Value) -> Outcome<Vec<usize>> {
        let size = |value: &Value| match value {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        };
        let sizes = self.as_tuple(value).filter(|values| values.len() <= 8);
        match sizes.and_then(|values| values.iter().map(size).collect()) {
            Some(sizes) => Ok(sizes),
            None => self.fault("has a tensor whose shape or strides are no whole numbers"),
        }
    }

    /// Attributes of an object: those of a dictionary say nothing of tensors.
    fn build(&mut self) -> Outcome<()> {
        let _ = self.pop()?;
        match self.last()? {
            Value::Dict(_) => Ok(()),
            _ => self.fault("sets attributes of what is no dictionary"),
        }
    }
}

/// What Python calls an instruction.
fn instruction_name(instruction: u8) -> String {
    let name = match instruction {
        b'i' => "INST",
        b'o' => "OBJ",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        0x82..=0x84 => "EXT",
        b'P' => "PERSID",
        b'B' | b'C' | 0x8e => "BINBYTES",
        b'I' => "INT",
        b'L' => "LONG",
        b'F' => "FLOAT",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'g' => "GET",
        b'p' => "PUT",
        b'd' => "DICT",
        b'l' => "LIST",
        b'2' => "DUP",
        0x8b => "LONG4",
        0x8d => "BINUNICODE8",
        0x8f..=0x91 => "SET",
        0x96 => "BYTEARRAY8",
        0x97 | 0x98 => "BUFFER",
        other => return format!("0x{other:02x}"),
    };
    name.to_owned()
}
