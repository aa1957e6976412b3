"""`python -m ood_audit` is `ood-audit`."""

from ood_audit.cli import main

main()
