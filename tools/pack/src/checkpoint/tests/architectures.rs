//! Keys that contradict the architecture, which no tensor tells.

use super::*;

/// What a falcon_mamba may say, and a mamba may not.
fn of_falcon() -> Vec<(&'static str, Value)> {
    vec![
        ("architectures", json!(["FalconMambaForCausalLM"])),
        ("architectures", json!("FalconMambaModel")),
        ("mixer_rms_eps", json!(1e-6)),
        ("use_bcdt_rms", json!(true)),
        ("auto_map", json!({ "AutoModelForCausalLM": "modeling_falcon_mamba.FalconMambaForCausalLM" })),
    ]
}

fn of_mamba() -> Vec<(&'static str, Value)> {
    vec![
        ("architectures", json!(["MambaForCausalLM"])),
        ("architectures", json!(["MambaLMHeadModel"])),
        ("use_bcdt_rms", json!(false)),
        (
            "auto_map",
            json!({ "AutoConfig": "x--configuration_mamba.MambaConfig", "AutoModel": "m.MambaModel" }),
        ),
    ]
}

#[test]
fn keys_that_contradict_the_architecture_are_refused_by_name() {
    for (model_type, right, wrong) in
        [("mamba", of_mamba(), of_falcon()), ("falcon_mamba", of_falcon(), of_mamba())]
    {
        for (key, value) in right {
            let mut fixture = Fixture::new(model_type);
            fixture.config[key] = value;
            Checkpoint::open(fixture.write().path()).unwrap();
        }
        for (key, value) in wrong {
            let mut fixture = Fixture::new(model_type);
            fixture.config[key] = value;
            refused(
                &fixture,
                &["config.json: `", key, "contradicts", &format!("`model_type` {model_type}:")],
            );
        }
        for other in [json!(["Mamba2ForCausalLM"]), json!(["MambaForCausalLM", "FalconMambaForCausalLM"])] {
            let mut fixture = Fixture::new(model_type);
            fixture.config["architectures"] = other;
            refused(&fixture, &["`architectures: "]);
        }
        let mut fixture = Fixture::new(model_type);
        fixture.config["architectures"] = json!([1]);
        refused(&fixture, &["`architectures` has 1"]);
        fixture.config["architectures"] = Value::Null;
        fixture.config["use_bcdt_rms"] = json!("yes");
        refused(&fixture, &["`use_bcdt_rms` is \"yes\""]);
        // null is the same as nothing.
        fixture.config["use_bcdt_rms"] = Value::Null;
        fixture.config["mixer_rms_eps"] = Value::Null;
        Checkpoint::open(fixture.write().path()).unwrap();
    }
}

/// The original's config.json has no `model_type`: it is Mamba.
#[test]
fn the_originals_spelling_is_mamba() {
    let original = |key: &str, value: Value| {
        let mut config = json!({ "d_model": 8, "n_layer": 2, "vocab_size": 10, "ssm_cfg": {} });
        config[key] = value;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, config.to_string()).unwrap();
        ModelConfig::from_file(&path).map_err(|error| error.to_string())
    };
    for (key, value) in of_falcon().into_iter().chain([("ssm_cfg", json!({ "use_bcdt_rms": true }))]) {
        let message = original(key, value).unwrap_err();
        assert!(message.contains("the original Mamba's spelling"), "{message}");
    }
    for (key, value) in of_mamba() {
        let message = original(key, value).err();
        assert!(message.is_none_or(|message| !message.contains("contradicts")));
    }
}
