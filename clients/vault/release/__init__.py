"""What may leave a site: policy, approvals, kept releases, the unit of privacy."""
