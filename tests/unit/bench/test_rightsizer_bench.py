"""`trimtab bench rightsizer` and `decision` on small files: the documents that others read, and refusals."""

import json

import pytest

from trimtab.bench import decision, rightsizer

HEADER = "function,input,memory_mib,cpu_millis,instance_type,seconds,http_status"
CLASSES = (250, 500, 750, 1000, 1250, 1500, 1750, 2000)
KEYS = {
    "violations_percent",
    "by_cause",
    "mean_vcpu",
    "wasted_vcpu_p50",
    "wasted_vcpu_p95",
    "mean_memory_mib",
    "wasted_memory_mib",
    "oom_percent",
    "decisions",
    "learning_curve",
    "ci95",
}


def rows():
    """Return recorded runs: `square` by number, `resize` by a features file, one too little tried."""
    found = [HEADER]
    for function, name, work, floor in (
        ("square", "10", 1.0, 128),
        ("square", "100", 4.0, 512),
        ("square", "1000", 9.0, 1024),
        ("resize", "a", 2.0, 256),
        ("resize", "b", 6.0, 256),
    ):
        for cpu in CLASSES:
            machine = "m5.xlarge" if cpu == 2000 else "m5.large"
            seconds = work / min(1.0, cpu / 1000)
            found += [f"{function},{name},{floor},{cpu},{machine},{seconds},200"] * 3
            found.append(f"{function},{name},{floor // 2},{cpu},{machine},1.0,500")
            found.append(f"{function},{name},4096,{cpu},c5.large,0.1,200")
    found.append("square,7,128,1000,m5.large,1.0,200")
    return found


@pytest.fixture
def files(tmp_path):
    """Write runs and features; return the options that name them."""
    runs, features = tmp_path / "runs.csv", tmp_path / "features.csv"
    runs.write_text("\n".join(rows()))
    features.write_text("input,bytes,width,height,format\na,10,4,5,png\nb,90,40,50,gif\n")
    return ["--runs", str(runs), "--features", str(features)]


def document(capsys, arguments, *, bench=rightsizer):
    """Run a benchmark and return its JSON."""
    assert bench.main([*arguments, "-o", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_document_has_what_others_read(files, capsys):
    """Every policy of every function, and of all together, has the documented figures."""
    found = document(capsys, [*files, "--requests", "200", "--warm-up", "40", "--seeds", "2"])
    assert set(found["functions"]) == {"square", "resize"}
    for part in (*found["functions"].values(), found["all"]):
        assert {"trimtab", "best-static", "parrotfish-like", "oracle"} <= set(part["policies"])
        for figures in part["policies"].values():
            assert set(figures) >= KEYS
            assert sum(figures["by_cause"].values()) == figures["late"]
    ours = found["functions"]["square"]["policies"]["trimtab"]
    assert ours["requests"] > 80
    assert ours["mean_memory_mib"] < 1024
    assert ours["ooms_after_50"] == 0
    assert sum(ours["decisions"].values()) == ours["requests"]
    assert found["functions"]["resize"]["policies"]["trimtab"]["mean_memory_mib"] is None
    assert found["functions"]["square"]["policies"]["aquatope-like"]["profiling"]["runs"] > 0
    assert all(line["met"] in (True, False, None) for line in found["targets"])
    assert any("B1" in line["target"] for line in found["targets"])


@pytest.mark.parametrize(
    ("regime", "deadlines"), [("A", [1.2, 4.8, 10.8]), ("B", [10.8]), ("C", [10.8])]
)
def test_deadlines_follow_the_regime(files, capsys, regime, deadlines):
    """A: each input's own; B: the slowest's; C: that at the 90th percentile."""
    options = [*files, "--regime", regime, "--policies", "oracle", "--requests", "40"]
    found = document(capsys, [*options, "--warm-up", "0", "--seeds", "1"])
    assert found["functions"]["square"]["deadline_seconds"] == deadlines
    assert found["targets"] == []
    assert found["harness"]["pairs"] == 5


@pytest.mark.parametrize("split", [(), ("--split",)])
def test_a_synthetic_feature_replaces_the_file(files, capsys, split):
    """A function without features can have a synthetic one, and the document says so."""
    options = [*files[:2], "--synthetic-feature", "resize", *split, "--policies", "trimtab,oracle"]
    found = document(capsys, [*options, "--requests", "200", "--seeds", "1", "--warm-up", "0"])
    assert found["options"]["synthetic_features"] == ["resize"]
    assert found["options"]["split"] is bool(split)
    assert found["functions"]["resize"]["policies"]["trimtab"]["requests"] > 50


def test_people_get_tables_with_counts(files, capsys):
    """Counts stand before ratios, and ablations are policies too."""
    options = [*files, "--policies", "trimtab,ablations", "--requests", "60", "--seeds", "1"]
    assert rightsizer.main([*options, "--warm-up", "10"]) == 0
    out = capsys.readouterr().out
    assert "simulation" in out
    assert "0 of " in out
    assert "ablation:no-gate" in out


def test_pools_show_cold_starts_and_idle_pods(files, capsys):
    """With arrivals every request is answered, and what idle pods hold is counted apart."""
    options = [*files, "--policies", "trimtab-4-sizes,best-static", "--requests", "120"]
    options += ["--seeds", "1", "--pool-load", "1.5", "--warm-up", "0"]
    found = document(capsys, options)["pools"]["square"]
    assert 1 < found["trimtab-4-sizes"]["requests"] == found["best-static"]["requests"]
    assert found["trimtab-4-sizes"]["starts"] > 0
    assert found["best-static"]["idle_vcpu_seconds"] > 0
    assert rightsizer.main(options) == 0
    assert "with arrivals" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--machine", "z9"], "--machine from c5, m5"),
        (["--policies", "magic"], "no such policy"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--requests", "300", "--warm-up", "300"], "--warm-up 300 leaves none"),
        (["--deadline-factor", "0"], "--deadline-factor must be positive"),
        (["--classes", "x"], "--classes x"),
        (["--classes", "333"], "CPU classes 333"),
        (["--synthetic-feature", "other"], "no such function"),
    ],
)
def test_what_cannot_be_done_is_said(files, capsys, options, words):
    """One line on standard error names option, value and remedy."""
    assert rightsizer.main([*files, *options]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("function,input\nf,1", "has no column memory_mib"),
        (f"{HEADER}\nf,1,128,x,m5.large,1.0,200", "line 2: cpu_millis is 'x'"),
        (f"{HEADER}\nf,1,128,250,m5.large,0,200", "must be positive"),
        (f"{HEADER}\nf,1,128,250,m5.large,,200", "line 2: seconds is ''"),
        (f"{HEADER}\nf,1,128.5,250,m5.large,1,200", "line 2: memory_mib is '128.5'"),
        (HEADER, "holds no run"),
        (f"{HEADER}\nf,1,128,250,m5.large,1,200", "No input ran at"),
    ],
)
def test_a_wrong_file_is_refused_by_line(tmp_path, capsys, text, words):
    """The message names the file, the line and the column."""
    runs = tmp_path / "runs.csv"
    runs.write_text(text)
    assert rightsizer.main(["--runs", str(runs)]) == 1
    assert words in capsys.readouterr().err


def test_an_input_without_features_is_named(files, capsys):
    """An input whose name is no number needs a row or a synthetic feature."""
    assert rightsizer.main(files[:2]) == 1
    assert "Input a of function resize has no features" in capsys.readouterr().err


def test_decision_reports_its_own_time(capsys):
    """Quantiles of features, prediction, both, and learning, with the targets beside them."""
    found = document(capsys, ["--calls", "20"], bench=decision)
    assert set(found["microseconds"]) == {
        "features",
        "prediction",
        "features_and_prediction",
        "learning",
    }
    assert found["classes"] == 20
    assert len(found["targets"]) == 4
    assert "microseconds" in decision.text(found)
    assert decision.main(["--calls", "0"]) == 1
