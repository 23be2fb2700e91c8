"""Group version `trimtab.dev/v1alpha1`. Import the modules: pydantic is loaded only by those that need it."""
