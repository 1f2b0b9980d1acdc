//! Compiles `csi.proto` without `protoc`, and writes the Debug of every message that carries a secret.

use std::{env, error::Error, fmt::Write as _, fs, path::PathBuf};

use protox::{
    Compiler,
    prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor},
};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=csi.proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);

    let mut compiler = Compiler::new(["."])?;
    compiler
        .include_source_info(true)
        .include_imports(true)
        .open_file("csi.proto")?;
    // Encoded by protox, because a round trip through prost-types drops the csi_secret and alpha options.
    fs::write(
        out.join("descriptor.bin"),
        compiler.encode_file_descriptor_set(),
    )?;

    let pool = compiler.descriptor_pool();
    let secretive = messages_with_a_secret(&pool);
    let mut config = tonic_prost_build::Config::new();
    config.skip_debug(secretive.iter().map(MessageDescriptor::full_name));
    tonic_prost_build::configure()
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;

    let debug: String = secretive.iter().map(redacting_debug).collect();
    fs::write(out.join("debug.rs"), debug)?;
    Ok(())
}

fn messages_with_a_secret(pool: &DescriptorPool) -> Vec<MessageDescriptor> {
    let ours = pool
        .all_messages()
        .filter(|message| message.package_name() == "csi.v1");
    ours.filter(|message| message.fields().any(|field| is_secret(&field)))
        .collect()
}

fn is_secret(field: &FieldDescriptor) -> bool {
    field
        .options()
        .extensions()
        .any(|(extension, value)| extension.name() == "csi_secret" && value.as_bool() == Some(true))
}

/// The Debug that `prost` would have derived, with `***` for a secret field that holds something.
fn redacting_debug(message: &MessageDescriptor) -> String {
    let mut code = String::new();
    let name = message.name();
    let _ = writeln!(code, "impl ::core::fmt::Debug for {name} {{");
    let _ = writeln!(
        code,
        "    fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{"
    );
    let _ = writeln!(code, "        f.debug_struct({name:?})");
    for field in message.fields() {
        let field_name = field.name();
        let value = if is_secret(&field) {
            format!("Redacted(self.{field_name}.len())")
        } else {
            format!("self.{field_name}")
        };
        let _ = writeln!(code, "            .field({field_name:?}, &{value})");
    }
    let _ = writeln!(code, "            .finish()\n    }}\n}}");
    code
}
