"""Why a condition, an event or an alternative is what it is: a closed list, one line each.

A reason is written by one place and read by conditions, events, metrics, `kubectl trimtab why` and
the documentation, so it lives here. The message beside it carries object, field, value and remedy.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """A closed enum of PascalCase reasons; `doc` is its one-line meaning."""

    doc: str

    def __new__(cls, value: str, doc: str) -> Self:
        """Make the member from its value and its meaning."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.doc = doc
        return member

    # Any object.
    PENDING = "Pending", "Seen, and nothing is known about it yet."
    PAUSED = "Paused", "The annotation trimtab.dev/paused freezes the object's children."
    DELETING = "Deleting", "The object is being deleted; its children go with it."
    INTERNAL_ERROR = (
        "InternalError",
        "A bug in Trimtab stopped this step; the message says where to report it.",
    )
    FIELD_CONFLICT = "FieldConflict", "Another manager owns a field that Trimtab has to write."
    INVALID_OBJECT = (
        "InvalidObject",
        "The API server refused a child as invalid; the message names its field.",
    )
    TOO_LARGE = "TooLarge", "The API server refused a child because it is too large."
    QUOTA_EXCEEDED = (
        "QuotaExceeded",
        "A ResourceQuota of the namespace refused a child; the message names it.",
    )
    MISSING_PERMISSION = (
        "MissingPermission",
        "Trimtab's role lacks a verb on a resource; the message names both.",
    )
    POLICY_DENIED = "PolicyDenied", "An admission policy of the cluster refused a child."
    NAMESPACE_TERMINATING = (
        "NamespaceTerminating",
        "The namespace is being deleted, so nothing is created in it.",
    )
    API_UNAVAILABLE = "APIUnavailable", "The API server did not answer; the step is repeated."

    # Sources and inspection of a model.
    INSPECTING = "Inspecting", "A Job is reading the model's configuration and headers."
    INSPECTED = "Inspected", "The model was read; its fingerprints are next."
    MODEL_NOT_FOUND = (
        "ModelNotFound",
        "The model's path, claim, repository or revision does not exist.",
    )
    MODEL_CORRUPT = "ModelCorrupt", "The model's files are cut short or do not match their headers."
    UNSUPPORTED_MODEL = (
        "UnsupportedModel",
        "The model's architecture or a key of its configuration is not supported.",
    )
    MODEL_NAME_TAKEN = (
        "ModelNameTaken",
        "An older intent holds the bare model name; the namespaced name works.",
    )
    SOURCE_DISABLED = (
        "SourceDisabled",
        "This kind of model source is not enabled in this installation.",
    )
    SOURCE_PATH_NOT_ALLOWED = (
        "SourcePathNotAllowed",
        "The path leaves its volume, or the hostPath lies outside sources.hostPath.allowedPrefixes.",
    )
    SOURCE_NOT_BOUND = "SourceNotBound", "The PersistentVolumeClaim does not exist or is not bound."
    DOWNLOAD_FAILED = (
        "DownloadFailed",
        "The hub did not deliver the pinned revision; the message has its answer.",
    )
    PICKLE_REFUSED = (
        "PickleRefused",
        "The model holds pickles; only safetensors and GGUF files are read.",
    )
    INSPECTION_FAILED = (
        "InspectionFailed",
        "The inspection Job ended without a verdict; the message has its exit.",
    )

    # Fingerprints.
    FINGERPRINTING = (
        "Fingerprinting",
        "Jobs are measuring the one- and two-layer versions of the model.",
    )
    MEASURED = "Measured", "Every option that matters rests on a measurement in the engine."
    ESTIMATED = (
        "Estimated",
        "Options rest on a catalogue or a roofline until a measurement is possible.",
    )
    FINGERPRINT_FAILED = (
        "FingerprintFailed",
        "A fingerprint Job failed; it is repeated, the next source serves meanwhile.",
    )
    FINGERPRINT_INVALID = (
        "FingerprintInvalid",
        "A fingerprint's document is invalid; the previous one is kept.",
    )
    FINGERPRINT_SUSPECT = (
        "FingerprintSuspect",
        "Live steps differ more than two-fold from the fingerprint; measured again.",
    )
    UNIDENTIFIABLE = (
        "Unidentifiable",
        "The noise hides one layer's time; the figure is kept with low confidence.",
    )
    CONTENDED = (
        "Contended",
        "The fingerprint was measured beside other work, so its confidence is lower.",
    )

    # Plans.
    PLANNING = "Planning", "The planner is working on the fleet."
    CHOSEN = "Chosen", "This option meets the objective best."
    AS_TARGETED = "AsTargeted", "The chosen option meets the objective by its prediction."
    NEAREST_TO_TARGET = (
        "NearestToTarget",
        "No option meets the objective; the nearest one serves, as spec.infeasible asks.",
    )
    LOAD_ASSUMED = (
        "LoadAssumed",
        "No load is declared or observed: planned for one request in flight.",
    )
    PRICE_UNKNOWN = (
        "PriceUnknown",
        "The price book has no price for this product, so no cost is known.",
    )
    PRICE_BOOK_INVALID = (
        "PriceBookInvalid",
        "The price book could not be read; the last valid one is used.",
    )
    PLANNER_FAILED = (
        "PlannerFailed",
        "The planner ended or hung; the last plan stays and planning is repeated.",
    )
    CONSTRAINTS_EXCLUDE_ALL = (
        "ConstraintsExcludeAll",
        "The constraints leave no option; the message names the pin.",
    )
    NO_ESTIMATE = (
        "NoEstimate",
        "No source has an estimate for any option that the constraints allow.",
    )
    NO_FIT = "NoFit", "The model does not fit into any allowed option's memory."
    TARGET_BELOW_FLOOR = (
        "TargetBelowFloor",
        "Even one unloaded request misses the target; replicas cannot help.",
    )
    BUDGET_TOO_SMALL = "BudgetTooSmall", "The cheapest option costs more than the target."
    TARGET_NEEDS_MORE_GPUS = (
        "TargetNeedsMoreGPUs",
        "The target needs more devices than the fleet has.",
    )
    NO_CAPACITY = "NoCapacity", "The devices that would do are held by other intents."

    # Why an alternative lost.
    COSTLIER = "Costlier", "Meets the objective at a higher cost."
    SLOWER = "Slower", "Is slower at no relevant saving."
    MISSES_TARGET = "MissesTarget", "Its prediction with the margin misses a target."
    OVER_BUDGET = "OverBudget", "Costs more than the target."
    OVERLOADED = "Overloaded", "Cannot carry the load."
    PRECISION_UNSUPPORTED = (
        "PrecisionUnsupported",
        "The engine cannot run this precision on this product.",
    )
    PARALLELISM_UNSUPPORTED = (
        "ParallelismUnsupported",
        "The engine or the model's shape rules this parallel size out.",
    )
    ACCURACY_LOSS = "AccuracyLoss", "Loses more accuracy than the constraints allow."
    SWITCHING_COST = "SwitchingCost", "Is better, but by less than the change would cost."
    NOT_SIMULATED = (
        "NotSimulated",
        "Looks better in closed form, but the options that looked best were simulated.",
    )
    UNCALIBRATED = (
        "Uncalibrated",
        "Looks better, but by less than its missing anchors make uncertain.",
    )

    # Placement and serving.
    PLACED = "Placed", "The replicas' objects exist as planned."
    ROLLING = "Rolling", "Replicas are being replaced, new ones first."
    PENDING_REPLICAS = (
        "PendingReplicas",
        "Replicas wait for the scheduler; the message has its reason.",
    )
    WAITING_FOR_PLAN = "WaitingForPlan", "There is no plan yet, so nothing is created."
    REPLICAS_NOT_OURS = (
        "ReplicasNotOurs",
        "Another manager owns the Deployment's replicas; Trimtab leaves them alone.",
    )
    FELL_BACK = "FellBack", "The replica got other devices than chosen."
    NODE_AFFINITY_ONLY = (
        "NodeAffinityOnly",
        "Without DRA the node is chosen and the kubelet picks the device.",
    )
    RUNS_AS_ROOT = "RunsAsRoot", "The image runs as root in a namespace that forbids it."
    SERVING = "Serving", "A worker has the model resident and answers."
    LOADING = "Loading", "Workers are loading the model."
    NOT_READY = "NotReady", "No worker is ready."
    WORKER_CRASHING = (
        "WorkerCrashing",
        "Workers end again and again; the message has the exit reason.",
    )
    OUT_OF_MEMORY = "OutOfMemory", "A container was killed for using more memory than its limit."
    IMAGE_PULL_FAILED = "ImagePullFailed", "The kubelet cannot pull an image; the message names it."
    SLAB_MISMATCH = (
        "SlabMismatch",
        "The model's shape does not suit the running group; the group rolls.",
    )
    REFUSED = (
        "Refused",
        "spec.infeasible is Refuse and no option is feasible, so nothing new is created.",
    )

    # Targets, judged at the gateway.
    WITHIN_TARGET = "WithinTarget", "The observed figures meet the targets."
    OUTSIDE_TARGET = (
        "OutsideTarget",
        "An observed figure misses its target; the message says which.",
    )
    NO_TARGET = "NoTarget", "The objective has no target to be judged by."
    TOO_FEW_REQUESTS = "TooFewRequests", "Fewer than 50 requests in five minutes: no verdict."
    GATEWAY_UNREACHABLE = (
        "GatewayUnreachable",
        "No gateway replica answers, so nothing is observed.",
    )

    # ServerlessFunction.
    ACCEPTED = "Accepted", "Valid, with rights granted, and seen by the gateway."
    RIGHTS_MISSING = (
        "RightsMissing",
        "The gateway has no right to create pods in this namespace yet.",
    )
    SIGNATURE_AMBIGUOUS = (
        "SignatureAmbiguous",
        "The module has several handlers; the message names the candidates.",
    )
    MODEL_LOADED = "ModelLoaded", "The learned sizing model is in force."
    CORRUPT = "Corrupt", "The checkpoint was damaged; sizes start from the default."
    DIFFERENT_FEATURES = (
        "DifferentFeatures",
        "The features changed, so the learned model was discarded.",
    )
    USAGE_AVAILABLE = "UsageAvailable", "Every invocation's CPU and memory use is known."
    NO_NODE_AGENT = "NoNodeAgent", "The use of a foreign image's pods cannot be read; no learning."
    SIZABLE = "Sizable", "Sizes are decided per invocation."
    TOO_SHORT = "TooShort", "Invocations are too short to size their CPU one by one."
    CONCURRENT = "Concurrent", "More than one request at a time in a pod: use cannot be attributed."
    SIZING_OFF = "SizingOff", "spec.mode keeps the default size."
    LEARNING = "Learning", "Too few invocations yet; the default size is used."
    RESIZE_UNAVAILABLE = "ResizeUnavailable", "The cluster cannot resize pods in place."
    WITHIN_DEADLINE = "WithinDeadline", "Invocations end before their deadline."
    COLD_STARTS_TOO_SLOW = "ColdStartsTooSlow", "The median cold start alone exceeds the deadline."
    DEADLINE_MISSED = (
        "DeadlineMissed",
        "Invocations miss their deadline; the message names the main cause.",
    )

    # GPUProfile.
    NO_MATCHING_NODES = "NoMatchingNodes", "No node matches spec.nodeSelector."
    PROFILING = "Profiling", "Jobs are measuring GPUs."
    PROFILED = "Profiled", "Every idle GPU of the pool has been measured."
    GPUS_BUSY = "GPUsBusy", "GPUs are never idle, so they could not be measured."
    PROFILING_FAILED = "ProfilingFailed", "A profiling Job failed; the message has its reason."
    RELIABLE = "Reliable", "Differences between GPUs are larger than the noise."
    UNRELIABLE = "Unreliable", "The noise hides the differences between GPUs; scores are ignored."
    TOO_FEW_RUNS = "TooFewRuns", "Too few runs or devices to judge reliability."
    NO_VARIATION = "NoVariation", "The GPUs do not differ."
    FRESH = "Fresh", "Every score is younger than two intervals."
    STALE = "Stale", "Scores are older than two intervals and are ignored."
    OUTLIERS_CONFIRMED = (
        "OutliersConfirmed",
        "GPUs are confirmed as slow outliers; the message names them.",
    )
    NO_OUTLIERS = "NoOutliers", "No GPU is confirmed as an outlier."
    NODE_COMMON_MODE = (
        "NodeCommonMode",
        "Most GPUs of a node are slow together: the node is to blame.",
    )
    MANY_SLOW = "ManySlow", "More of the cohort is slow than may be excluded: driver or cooling."
    NO_COMMON_CAUSE = "NoCommonCause", "No cause common to the cohort is visible."
    DUPLICATE_UUID = "DuplicateUUID", "One GPU uuid is reported by two nodes; both are unscored."
