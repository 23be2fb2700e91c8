module trimtab.dev/e2e/cluster/pki

go 1.26.0
