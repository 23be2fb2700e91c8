"""Label, annotation and manager names: the vocabulary of every object Trimtab touches."""

from typing import Final

GROUP: Final = "trimtab.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

FINALIZER: Final = f"{GROUP}/finalizer"
OPERATOR: Final = "trimtab-operator"
GATEWAY: Final = "trimtab-gateway"
ANCHORS: Final = "trimtab-anchors"
"""Manager of what is learned of a fingerprint beside its document, whoever wrote that."""

NAME_LABEL: Final = "app.kubernetes.io/name"
INSTANCE_LABEL: Final = "app.kubernetes.io/instance"
COMPONENT_LABEL: Final = "app.kubernetes.io/component"
PART_OF_LABEL: Final = "app.kubernetes.io/part-of"
MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"

OWNER_UID_LABEL: Final = f"{GROUP}/owner-uid"
INTENT_LABEL: Final = f"{GROUP}/intent"
INTENT_NAMESPACE_LABEL: Final = f"{GROUP}/intent-namespace"
GROUP_LABEL: Final = f"{GROUP}/group"

PAUSED_ANNOTATION: Final = f"{GROUP}/paused"
PLAN_DIGEST_ANNOTATION: Final = f"{GROUP}/plan-digest"
MODEL_SET_REVISION_ANNOTATION: Final = f"{GROUP}/model-set-revision"
REPLICAS_ANNOTATION: Final = f"{GROUP}/replicas"
