"""What several rooms' tests share: small random models, servers, made-up data."""
