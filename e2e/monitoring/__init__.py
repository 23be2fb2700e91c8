"""A real Prometheus beside a running Trimtab: does every dashboard and alert have data, and how do they look?"""
