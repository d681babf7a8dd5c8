//! What the loops without `sdot` consist of, as text for the assembler.
//!
//! Products of int8 widen to i16, where two of int8 or sixteen of a nibble fit. The order of instructions is for CPUs that don't
//! change it (Cortex-A53, A55): eight sums are in flight, so that none waits for its last product; weights are read while
//! others are multiplied; and pointers are computed where nothing waits for them. All loops use the same registers:
//!
//! | registers | hold |
//! |---|---|
//! | `v0` to `v3` | sums |
//! | `v4` to `v11` | dot products: partial ones of a row side by side, two in i32, or four in i16 where weights are small |
//! | `v12` to `v19` | products of int8; low nibbles; scales |
//! | `v20` to `v27` | weights |
//! | `v28` to `v31` | activations, four columns of a token in every four bytes; of two tokens `v24` to `v31` |

/// Products of four registers of weights with activations, in the registers of `products` or of `dots`.
macro_rules! multiply {
    (products = $op:literal, $($operands:literal)+) => {
        multiply!(@ $op, "v12" "v13" "v14" "v15" "v16" "v17" "v18" "v19", $($operands)+)
    };
    (dots = $op:literal, $($operands:literal)+) => {
        multiply!(@ $op, "v4" "v5" "v6" "v7" "v8" "v9" "v10" "v11", $($operands)+)
    };
    (@ $op:literal, $low:literal $high:literal $($to:literal)*, $w:literal $x:literal $($operands:literal)*) => {
        concat!(
            $op, " ", $low, ".8h, ", $w, ".8b, ", $x, ".8b\n",
            $op, "2 ", $high, ".8h, ", $w, ".16b, ", $x, ".16b\n",
            multiply!(@ $op, $($to)*, $($operands)*)
        )
    };
    (@ $op:literal, ,) => { "" };
}

/// Products of sixteen rows with a token.
macro_rules! sixteen {
    ($to:ident = $op:literal, $a:literal $b:literal $c:literal $d:literal * $x:literal) => {
        multiply!($to = $op, $a $x $b $x $c $x $d $x)
    };
}

/// Products of eight rows with two tokens.
macro_rules! eight {
    ($to:ident = $op:literal, $a:literal $b:literal * $x:literal $y:literal) => {
        multiply!($to = $op, $a $x $b $x $a $y $b $y)
    };
}

/// Adds products of int8 in pairs to the dot products; reads something meanwhile, and something at the end.
macro_rules! add_pairs {
    ($op:literal, $meanwhile:expr, $last:expr) => {
        concat!(
            add_pairs!(@ $op, "v4" "v12", "v5" "v13", "v6" "v14"),
            $meanwhile,
            add_pairs!(@ $op, "v7" "v15", "v8" "v16", "v9" "v17", "v10" "v18", "v11" "v19"),
            $last
        )
    };
    (@ $op:literal, $($dots:literal $products:literal),+) => {
        concat!($($op, " ", $dots, ".4s, ", $products, ".8h\n"),+)
    };
}

/// Joins two partial dot products of each row: four rows a register, `v4` to `v7`.
macro_rules! join_pairs {
    () => {
        "addp v4.4s, v4.4s, v5.4s
        addp v5.4s, v6.4s, v7.4s
        addp v6.4s, v8.4s, v9.4s
        addp v7.4s, v10.4s, v11.4s\n"
    };
}

/// Eight columns of sixteen rows of int8 with a token; `$next` and `$after` read the weights of the next eight.
macro_rules! eight_columns {
    ($add:literal, $x:literal $y:literal, $next:literal, $after:literal, $meanwhile:expr, $last:expr) => {
        concat!(
            sixteen!(products = "smull", "v20" "v21" "v22" "v23" * $x),
            $next,
            sixteen!(products = "smlal", "v24" "v25" "v26" "v27" * $y),
            $after,
            add_pairs!($add, $meanwhile, $last)
        )
    };
}

pub(super) use {add_pairs, eight, eight_columns, join_pairs, multiply, sixteen};
