// The views, as the document shows them: included by the module, so that the table stands by itself.
views! {
    "certificates" request::ListQuery, "The project's certificates with their versions and roles.", {"limit": 50}, json!({});
    "active-certificates" request::ListQuery, "What each host of the project serves in each region.", {}, json!({});
    "fallbacks" request::ListQuery, "What each host would serve next.", {}, json!({});
    "domains" request::ListQuery, "The project's claims.", {}, json!({});
    "resources" request::ListQuery, "The project's resources.", {}, json!({});
    "csrs" request::ListQuery, "Signing requests whose certificates have not come.", {}, json!({});
    "quotas" request::ListQuery, "How many certificates the project may have, and has.", {}, json!({});
    "usage" request::ListQuery, "How many things the project has.", {}, json!({});
    "regions" request::ListQuery, "Regions and countries.", {}, json!({});
    "host" request::HostQuery, "What a host serves in each region, and why.", {"host": "www.example.com"}, json!({});
    "outcome" request::OutcomeQuery, "What became of a command.", {"id": "0190a5b0-0000-7000-8000-000000000000"}, json!({});
    "events" request::EventsQuery, "The project's events, from a projectseq.", {"from": 1, "limit": 10}, json!({});
    "ingestion-key" request::ListQuery, "The key that private keys are sealed to.", {}, json!({});
    "checkpoint-key" request::ListQuery, "The key that checkpoints are signed with.", {}, json!({});
    "proof" tlog::ProofQuery, "That an event of the project is in the log, provably.", {"projectseq": 1}, json!({});
    "log" request::EventsQuery, "The log, from a sequence.", {"from": 1, "limit": 10}, json!({});
    "status" request::ListQuery, "Roles, head, lag, what is owed and what is wrong.", {}, json!({});
    "projects" request::ListQuery, "The projects.", {}, json!({});
    "access" request::ListQuery, "Who has access to a project.", {"of": "acme"}, json!({});
    "edges" request::ListQuery, "The edges.", {}, json!({});
    "rebuild" request::ListQuery, "Replay the log into fresh views and compare.", {}, json!({});
    "backup" request::BackupQuery, "Part of a backup.", {"part": "manifest"}, json!({});
    "checkpoint" tlog::CheckpointQuery, "A signed checkpoint of the log.", {}, json!({});
}
