//! The command line's words. Other programs drive it: a name here, once published, stays.
//!
//! Only shapes live here; what a command does is in [`crate::commands`], one file a noun.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use uuid::Uuid;

use lifecycle::event::{CertificateKind, Https, ResourceKind};
use lifecycle::names::Slug;

const AFTER: &str = "\
Exit status: 0 done, 1 refused, rejected or \"no\", 2 could not run or wrong usage, 3 waited in vain.

Connection: the flags --server, --creds or --nkey and --project; else CHANCERY_SERVER, CHANCERY_CREDS, CHANCERY_NKEY and \
CHANCERY_PROJECT; else the context file (--context, CHANCERY_CONTEXT or $XDG_CONFIG_HOME/chancery/context.toml).

CHANCERY_LOG filters what is logged to stderr, as in CHANCERY_LOG=debug; CHANCERY_LOG_FORMAT=json makes it JSON.

Example:
  chancery certificate add site --chain chain.pem --key key.pem --region local";

/// Takes TLS certificates in, chooses which one each host serves in each region, and carries them sealed to the edges.
#[derive(Debug, Parser)]
#[command(
    name = "chancery",
    version,
    about,
    after_help = AFTER,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 120
)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes, before or after its name.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Print one JSON document a line
    #[arg(long, global = true)]
    pub json: bool,
    /// The project to act in; without it, that of the credentials
    #[arg(long, global = true, value_name = "PROJECT", value_parser = project)]
    pub project: Option<Slug>,
    /// The NATS server
    #[arg(long, global = true, value_name = "URL")]
    pub server: Option<String>,
    /// The credentials file of the user
    #[arg(long, global = true, value_name = "FILE")]
    pub creds: Option<PathBuf>,
    /// A file with an NKEY seed, for servers that know users by their key
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "creds")]
    pub nkey: Option<PathBuf>,
    /// A TOML file with server, creds, nkey and project
    #[arg(long, global = true, value_name = "FILE")]
    pub context: Option<PathBuf>,
    /// The command's idempotency key: the same id again gives the first outcome
    #[arg(long, global = true, value_name = "UUID")]
    pub id: Option<Uuid>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything in one process, with its own nats-server
    #[command(
        after_help = "Example:\n  chancery up --state ./state --https 127.0.0.1:8443 --http 127.0.0.1:8080"
    )]
    Up(Up),
    /// Run the roles of a configuration file
    #[command(after_help = "Example:\n  chancery serve --config /etc/chancery/edge.toml")]
    Serve(Serve),
    /// Show roles, head, lag, edges, what is owed and what is wrong; exit 1 if something is wrong
    #[command(after_help = "Example:\n  chancery status --json")]
    Status,
    /// Projects, the tenants (operator)
    #[command(subcommand, after_help = "Example:\n  chancery project create acme")]
    Project(Project),
    /// Users of a project and their credentials (operator)
    #[command(
        subcommand,
        after_help = "Example:\n  chancery access create alice --project acme --out alice.creds"
    )]
    Access(Access),
    /// Regions and countries (operator)
    #[command(subcommand, after_help = "Example:\n  chancery region create eu-1")]
    Region(Region),
    /// Edges of a region (operator)
    #[command(
        subcommand,
        after_help = "Example:\n  chancery edge enrol eu-1 edge-7 --out edge-7.token"
    )]
    Edge(Edge),
    /// What domains point at: buckets, CDN resources, listeners
    #[command(
        subcommand,
        after_help = "Example:\n  chancery resource create media --kind bucket --region local --origin http://10.0.0.5:8333/media"
    )]
    Resource(Resource),
    /// Claims of hosts: where they are attached, how they are served
    #[command(
        subcommand,
        after_help = "Example:\n  chancery domain add www.example.com --resource media"
    )]
    Domain(Domain),
    /// Certificates and their versions
    #[command(
        subcommand,
        after_help = "Example:\n  chancery certificate add site --chain chain.pem --key key.pem --region local"
    )]
    Certificate(Certificate),
    /// Show what a host serves in each region, the fallback chain, the runway and why
    #[command(
        after_help = "Example:\n  chancery host www.example.com --region eu-1 --at 2026-11-22T12:00:00Z"
    )]
    Host(Host),
    /// Judge a chain offline, as clients that trust certain roots would; exit 1 if they would refuse it
    #[command(
        after_help = "The first certificate of FILE is the server's; the others help to find a path, in any order. Nothing is sent anywhere.\n\n\
                      Exit status 0: accepted; 1: rejected; 2: it could not run.\n\n\
                      Example:\n  chancery verify --chain chain.pem --key key.pem --domain www.example.com"
    )]
    Verify(Verify),
    /// The committed events
    #[command(
        subcommand,
        after_help = "Example:\n  chancery events replay --from 1 --json"
    )]
    Events(Events),
    /// Check the log and the views that are built from it, and prove to others what is in it
    #[command(subcommand, after_help = "Example:\n  chancery audit verify")]
    Audit(Audit),
    /// Copy everything that the control plane knows into a folder, keys sealed, while it runs (operator)
    #[command(
        after_help = "Once more into the same folder, only what is new is copied. The root key is not in it.\n\nExample:\n  chancery backup /backup/chancery\n  chancery backup --verify /backup/chancery"
    )]
    Backup(Backup),
    /// Make a state folder out of a backup
    #[command(
        after_help = "Example:\n  chancery restore /backup/chancery --state ./state --root-key /safe/root.key"
    )]
    Restore(Restore),
    /// Seal a private key to the ingestion key, for programs that send commands themselves
    #[command(after_help = "Example:\n  chancery seal --key key.pem --project acme > sealed.json")]
    Seal(Seal),
}

/// `chancery up`
#[derive(Clone, Debug, Args)]
pub struct Up {
    /// The folder of everything that is kept; locked while in use
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Where the edges listen for HTTPS: the first region's, then the next one's
    #[arg(long, value_name = "ADDR")]
    pub https: Vec<SocketAddr>,
    /// Where the edges listen for plain HTTP: the first region's, then the next one's
    #[arg(long, value_name = "ADDR")]
    pub http: Vec<SocketAddr>,
    /// A region with one edge, created if it is not there; `local` unless told
    #[arg(long = "region", value_name = "REGION")]
    pub regions: Vec<Slug>,
    /// A configuration file; flags go before it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log lines look
    #[command(flatten)]
    pub log: Log,
}

/// `chancery serve`
#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// A role to run instead of those that the file names
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<crate::config::Role>,
    /// How log lines look
    #[command(flatten)]
    pub log: Log,
}

/// How log lines look.
#[derive(Clone, Debug, Default, Args)]
pub struct Log {
    /// Log lines for people or as JSON; people's on a terminal unless told
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<crate::telemetry::Format>,
}

/// `chancery project`
#[derive(Debug, Subcommand)]
pub enum Project {
    /// Create a project; its id is never used again
    #[command(after_help = "Example:\n  chancery project create acme")]
    Create {
        /// 3 to 40 of a-z, 0-9 and hyphens
        #[arg(value_parser = project)]
        name: Slug,
    },
    /// List the projects
    #[command(after_help = "Example:\n  chancery project list --json")]
    List,
    /// Show one project
    #[command(after_help = "Example:\n  chancery project show acme")]
    Show {
        /// Its id
        #[arg(value_parser = project)]
        name: Slug,
    },
    /// Suspend a project: its hosts are served no more and its commands refused
    #[command(after_help = "Example:\n  chancery project suspend acme")]
    Suspend {
        /// Its id
        #[arg(value_parser = project)]
        name: Slug,
    },
    /// Serve a suspended project again
    #[command(after_help = "Example:\n  chancery project resume acme")]
    Resume {
        /// Its id
        #[arg(value_parser = project)]
        name: Slug,
    },
    /// Show how many certificates a project may have and has, or set that (operator)
    #[command(
        after_help = "Counted are certificates that are not deleted, of both kinds: in all, and of one kind in one region. A number below what is there takes nothing away.\n\nExample:\n  chancery project quota acme --certificates 10000 --per-region 10000"
    )]
    Quota {
        /// Its id
        #[arg(value_parser = project)]
        name: Slug,
        /// Certificates of both kinds together, at most 1,000,000
        #[arg(long, value_name = "NUMBER")]
        certificates: Option<u32>,
        /// Certificates of one kind in one region, at most 1,000,000
        #[arg(long, value_name = "NUMBER")]
        per_region: Option<u32>,
    },
    /// Set what a project may do
    #[command(after_help = "Example:\n  chancery project set acme --export off")]
    Set {
        /// Its id
        #[arg(value_parser = project)]
        name: Slug,
        /// Whether private keys may leave the project
        #[arg(long, value_enum, value_name = "on|off")]
        export: Switch,
    },
    /// Delete a project that holds nothing any more
    #[command(after_help = "Example:\n  chancery project delete acme --confirm acme")]
    Delete {
        /// Its id
        #[arg(value_parser = project)]
        name: Slug,
        /// The id once more
        #[arg(long, value_name = "NAME")]
        confirm: String,
    },
}

/// `chancery access`
#[derive(Debug, Subcommand)]
pub enum Access {
    /// Give somebody access to a project and write their credentials file
    #[command(
        after_help = "The key pair is made here and only its public half is sent. The file is never overwritten.\n\nExample:\n  chancery access create ci --project acme --out ci.creds --right 'cmd.certificate.*' --right 'query.*'"
    )]
    Create {
        /// The actor's opaque id, unique in the project
        name: Slug,
        /// The credentials file to write, readable by its owner only
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// A subject pattern below the project, as cmd.certificate.* or query.*; all of the project's unless told
        #[arg(long = "right", value_name = "RIGHT", value_parser = right)]
        rights: Vec<String>,
        /// Also the export of private keys, which no pattern covers: the right cmd.certificate.export by its name
        #[arg(long)]
        export: bool,
        /// When the access ends, RFC 3339
        #[arg(long, value_name = "TIME", value_parser = time)]
        expires: Option<Time>,
    },
    /// List who has access
    #[command(after_help = "Example:\n  chancery access list --project acme")]
    List,
    /// End somebody's access at once
    #[command(after_help = "Example:\n  chancery access revoke ci --project acme")]
    Revoke {
        /// The actor
        name: Slug,
    },
}

/// `chancery region`
#[derive(Debug, Subcommand)]
pub enum Region {
    /// Create a region and its key
    #[command(after_help = "Example:\n  chancery region create eu-1")]
    Create {
        /// Its name
        name: Slug,
    },
    /// List the regions and countries
    #[command(after_help = "Example:\n  chancery region list")]
    List,
    /// Show one region
    #[command(after_help = "Example:\n  chancery region show eu-1")]
    Show {
        /// Its name
        name: Slug,
    },
    /// Give a country its set of regions
    #[command(
        after_help = "Example:\n  chancery region country germany --region de-1 --region de-2"
    )]
    Country {
        /// The country
        name: Slug,
        /// Its regions
        #[arg(long = "region", value_name = "REGION", required = true)]
        regions: Vec<Slug>,
    },
}

/// `chancery edge`
#[derive(Debug, Subcommand)]
pub enum Edge {
    /// Issue the one-time token with which an edge enrols
    #[command(after_help = "Example:\n  chancery edge enrol eu-1 edge-7 --out edge-7.token")]
    Enrol {
        /// The region
        region: Slug,
        /// The edge's name
        name: Slug,
        /// Write the token to this file, readable by its owner only, instead of printing it
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// List the edges
    #[command(after_help = "Example:\n  chancery edge list --region eu-1")]
    List {
        /// Of this region only
        #[arg(long, value_name = "REGION")]
        region: Option<Slug>,
    },
    /// Put an edge out of its region and rotate the region's key
    #[command(after_help = "Example:\n  chancery edge evict eu-1 edge-7")]
    Evict {
        /// The region
        region: Slug,
        /// The edge's name
        name: Slug,
    },
}

/// `chancery resource`
#[derive(Debug, Subcommand)]
pub enum Resource {
    /// Create a resource
    #[command(
        after_help = "Example:\n  chancery resource create media --kind bucket --region local --origin http://10.0.0.5:8333/media"
    )]
    Create {
        /// Its name
        name: Slug,
        /// A bucket has one region, the others one or more
        #[arg(long, value_enum)]
        kind: KindOfResource,
        /// A region or country
        #[arg(long = "region", value_name = "REGION", required = true)]
        regions: Vec<Slug>,
        /// An http or https URL; the request's path is appended to its path
        #[arg(long, value_name = "URL")]
        origin: String,
        /// Pass on the client's Host instead of the origin's
        #[arg(long)]
        keep_host: bool,
        /// Serve only publicly trusted certificates for its hosts
        #[arg(long)]
        demand_public: bool,
    },
    /// List the resources
    #[command(after_help = "Example:\n  chancery resource list")]
    List,
    /// Show one resource
    #[command(after_help = "Example:\n  chancery resource show media")]
    Show {
        /// Its name
        name: Slug,
    },
    /// Change a resource; what is not given stays
    #[command(
        after_help = "Example:\n  chancery resource set media --origin https://origin.example.net/media"
    )]
    Set {
        /// Its name
        name: Slug,
        /// The regions or countries that it has from now on
        #[arg(long = "region", value_name = "REGION")]
        regions: Vec<Slug>,
        /// An http or https URL
        #[arg(long, value_name = "URL")]
        origin: Option<String>,
        /// Whether the client's Host is passed on
        #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        keep_host: Option<bool>,
        /// Whether only publicly trusted certificates are served for its hosts
        #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        demand_public: Option<bool>,
        /// Only if its revision is still this one
        #[arg(long, value_name = "REVISION")]
        expect: Option<u64>,
    },
    /// Delete a resource that no domain is attached to
    #[command(after_help = "Example:\n  chancery resource delete media --confirm media")]
    Delete {
        /// Its name
        name: Slug,
        /// The name once more
        #[arg(long, value_name = "NAME")]
        confirm: String,
    },
}

/// `chancery domain`
#[derive(Debug, Subcommand)]
pub enum Domain {
    /// Claim a host, and attach it to a resource
    #[command(after_help = "Example:\n  chancery domain add www.example.com --resource media")]
    Add {
        /// The host, or *.example.com for one level below
        host: String,
        /// The resource to attach it to
        #[arg(long, value_name = "NAME")]
        resource: Option<Slug>,
        /// Attach in this region or country only
        #[arg(long = "region", value_name = "REGION", requires = "resource")]
        regions: Vec<Slug>,
    },
    /// List the claims
    #[command(after_help = "Example:\n  chancery domain list")]
    List,
    /// Show one claim, and how to prove it
    #[command(after_help = "Example:\n  chancery domain show www.example.com")]
    Show {
        /// The host
        host: String,
    },
    /// Look in the DNS now whether a claim is proven; exit 1 with what was found and expected if it is not
    #[command(after_help = "Example:\n  chancery domain check www.example.com")]
    Check {
        /// The host
        host: String,
    },
    /// Wait until a claim has a status; exit 3 if it does not come to that in time
    #[command(
        after_help = "Example:\n  chancery domain wait www.example.com --status proven --timeout 10m"
    )]
    Wait {
        /// The host
        host: String,
        /// pending, proven or moved
        #[arg(long, value_name = "STATUS")]
        status: crate::commands::domain::proof::Target,
        /// How long, as 500ms, 60s, 5m or 1h
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
        timeout: Duration,
    },
    /// Vouch for a project's claim by hand (operator)
    #[command(after_help = "Example:\n  chancery domain prove www.example.com --project acme")]
    Prove {
        /// The host
        host: String,
        /// Take it from the project that holds it
        #[arg(long)]
        force: bool,
    },
    /// Attach a host to a resource
    #[command(
        after_help = "Example:\n  chancery domain attach www.example.com --resource media --region eu-1"
    )]
    Attach {
        /// The host
        host: String,
        /// The resource
        #[arg(long, value_name = "NAME")]
        resource: Slug,
        /// In this region or country only
        #[arg(long = "region", value_name = "REGION")]
        regions: Vec<Slug>,
    },
    /// Detach a host
    #[command(after_help = "Example:\n  chancery domain detach www.example.com --region eu-1")]
    Detach {
        /// The host
        host: String,
        /// In this region or country only
        #[arg(long = "region", value_name = "REGION")]
        regions: Vec<Slug>,
    },
    /// Put one certificate first for a host
    #[command(after_help = "Example:\n  chancery domain bind www.example.com site --region eu-1")]
    Bind {
        /// The host
        host: String,
        /// The certificate's name
        certificate: Slug,
        /// In this region only
        #[arg(long, value_name = "REGION")]
        region: Option<Slug>,
        /// Only if the claim's revision is still this one
        #[arg(long, value_name = "REVISION")]
        expect: Option<u64>,
    },
    /// Let selection decide again
    #[command(after_help = "Example:\n  chancery domain unbind www.example.com")]
    Unbind {
        /// The host
        host: String,
        /// In this region only
        #[arg(long, value_name = "REGION")]
        region: Option<Slug>,
        /// Only if the claim's revision is still this one
        #[arg(long, value_name = "REVISION")]
        expect: Option<u64>,
    },
    /// Turn HTTPS to auto or off for a host
    #[command(after_help = "Example:\n  chancery domain https www.example.com off")]
    Https {
        /// The host
        host: String,
        /// auto: selection decides; off: no HTTPS
        #[arg(value_enum)]
        mode: Mode,
        /// In this region only
        #[arg(long, value_name = "REGION")]
        region: Option<Slug>,
        /// Only if the claim's revision is still this one
        #[arg(long, value_name = "REVISION")]
        expect: Option<u64>,
    },
    /// Give a host up
    #[command(after_help = "Example:\n  chancery domain release www.example.com")]
    Release {
        /// The host
        host: String,
    },
}

/// `chancery certificate`
#[derive(Debug, Subcommand)]
pub enum Certificate {
    /// Upload a certificate; its key is sealed here before it leaves
    #[command(
        after_help = "A chain file that also holds the key is taken as well. The answer comes once the certificate is accepted; it is served as soon as it is verified.\n\nExample:\n  chancery certificate add site --chain chain.pem --key key.pem --region local"
    )]
    Add {
        /// Its name, unique in the project
        name: Slug,
        /// The certificate and its intermediates, in any order: PEM, DER, PKCS#12 (.pfx) or PKCS#7 (.p7b)
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
        /// The private key, unless the file of the chain holds it: PKCS#8, PKCS#1 or SEC1, as PEM or DER
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// A file whose first line is the password of an encrypted key or a PKCS#12 file; asked for on a terminal unless told
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// server: chain and key; ca: client trust, without a key
        #[arg(long, value_enum, default_value_t = KindOfCertificate::Server)]
        kind: KindOfCertificate,
        /// A region or country where it works
        #[arg(long = "region", value_name = "REGION", required = true)]
        regions: Vec<Slug>,
        /// A backup, which never goes live by being uploaded
        #[arg(long)]
        standby: bool,
        /// Wait until it is verified
        #[arg(long)]
        wait: bool,
    },
    /// List the certificates
    #[command(
        after_help = "With --host every certificate says whether it can serve the host, and if not, why, and which command mends that.\n\nExample:\n  chancery certificate list --expiring 30\n  chancery certificate list --host www.example.com\n  chancery certificate list --status error"
    )]
    List {
        /// Only those that end within so many days, the first to end first
        #[arg(long, value_name = "DAYS")]
        expiring: Option<u32>,
        /// Say of each whether it can serve this host, and why not
        #[arg(long, value_name = "HOST")]
        host: Option<String>,
        /// Only those of this status: verifying, ready, error, expired, revoked, "in progress", active or standby
        #[arg(long, value_name = "STATUS")]
        status: Option<String>,
        /// List signing requests whose certificates have not come
        #[arg(long, conflicts_with_all = ["expiring", "host", "status"])]
        csrs: bool,
    },
    /// Make a private key here and a signing request for it; the key never leaves
    #[command(
        after_help = "Have the request signed by your CA, then add the certificate without --key under any name. Asked again with the same --id, it is the same request.\n\nExample:\n  chancery certificate csr shop --host shop.example.com --host www.example.com --out shop.csr\n  chancery certificate csr shop --show\n  chancery certificate csr shop --discard"
    )]
    Csr {
        /// The name of the request, unique in the project
        name: Slug,
        /// A host that the certificate shall name, or *.example.com; up to 100
        #[arg(long = "host", value_name = "HOST", required_unless_present_any = ["show", "discard"])]
        hosts: Vec<String>,
        /// The key to make; public CAs do not sign ed25519
        #[arg(long, value_enum, value_name = "KIND", default_value_t = KindOfKey::P256)]
        key_type: KindOfKey,
        /// Write the request to this new file instead of printing it
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Show a request that was made before
        #[arg(long, conflicts_with_all = ["hosts", "discard"])]
        show: bool,
        /// Give a request up; its key is destroyed
        #[arg(long, conflicts_with_all = ["hosts", "out"])]
        discard: bool,
    },
    /// Take a certificate out with its private key; needs the right cmd.certificate.export by its name
    #[command(
        after_help = "The key is sealed to a key pair that is made for this call, opened here, and written so that only you can read it. That it left is an event. With --out - it goes to standard output, if that is no terminal.\n\nExample:\n  chancery certificate export site --format nginx --out site.pem --key-out site.key\n  chancery certificate export site --format haproxy --out site.pem\n  chancery certificate export site --format pkcs12 --out site.pfx --password-file password.txt"
    )]
    Export {
        /// Its name
        name: Slug,
        /// The form of the files
        #[arg(long, value_enum, value_name = "FORMAT")]
        format: Format,
        /// The file of the chain; for haproxy and pkcs12 with the key in it
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// For nginx, the file of the key; that of the chain with the ending .key unless told
        #[arg(long, value_name = "FILE")]
        key_out: Option<PathBuf>,
        /// For pkcs12, a file whose first line is the password; asked for on a terminal unless told
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// This version; the latest that may be served unless told
        #[arg(long = "of-version", value_name = "VERSION")]
        version: Option<u32>,
        /// Overwrite files that are there
        #[arg(long)]
        force: bool,
    },
    /// Move a certificate with its key to another project (operator)
    #[command(
        after_help = "--project names the project that has it. It is deleted there as with `delete`, so hosts that depend on it keep it back unless --force is given.\n\nExample:\n  chancery certificate move site --project acme --to other --confirm site"
    )]
    Move {
        /// Its name
        name: Slug,
        /// The project that gets it
        #[arg(long, value_name = "PROJECT", value_parser = project)]
        to: Slug,
        /// Its name there; the same unless told
        #[arg(long = "as", value_name = "NAME")]
        new_name: Option<Slug>,
        /// A region or country there; those that it has unless told
        #[arg(long = "region", value_name = "REGION")]
        regions: Vec<Slug>,
        /// The name once more, exactly
        #[arg(long, value_name = "NAME")]
        confirm: String,
        /// Even when hosts lose HTTPS
        #[arg(long)]
        force: bool,
        /// Only if its revision is still this one
        #[arg(long, value_name = "REVISION")]
        expect: Option<u64>,
    },
    /// Show one certificate with its versions and where it is active
    #[command(after_help = "Example:\n  chancery certificate show site")]
    Show {
        /// Its name
        name: Slug,
    },
    /// Add a version under the same name; it keeps the certificate's place
    #[command(
        after_help = "Example:\n  chancery certificate replace site --chain new.pem --key new.key --expect 3"
    )]
    Replace {
        /// Its name
        name: Slug,
        /// The certificate and its intermediates, in any order: PEM, DER, PKCS#12 (.pfx) or PKCS#7 (.p7b)
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
        /// The private key, unless the file of the chain holds it: PKCS#8, PKCS#1 or SEC1, as PEM or DER
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// A file whose first line is the password of an encrypted key or a PKCS#12 file; asked for on a terminal unless told
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Only if its revision is still this one
        #[arg(long, value_name = "REVISION")]
        expect: Option<u64>,
        /// Wait until it is verified
        #[arg(long)]
        wait: bool,
    },
    /// Deploy a certificate to further regions
    #[command(after_help = "Example:\n  chancery certificate deploy site --region eu-1")]
    Deploy {
        /// Its name
        name: Slug,
        /// A region or country
        #[arg(long = "region", value_name = "REGION", required = true)]
        regions: Vec<Slug>,
        /// Only if its revision is still this one
        #[arg(long, value_name = "REVISION")]
        expect: Option<u64>,
    },
    /// Withdraw a certificate from regions
    #[command(after_help = "Example:\n  chancery certificate withdraw site --region eu-1")]
    Withdraw {
        /// Its name
        name: Slug,
        /// A region or country
        #[arg(long = "region", value_name = "REGION", required = true)]
        regions: Vec<Slug>,
        /// Even when hosts lose HTTPS
        #[arg(long)]
        force: bool,
        /// Only if its revision is still this one
        #[arg(long, value_name = "REVISION")]
        expect: Option<u64>,
    },
    /// Delete a certificate with all its versions and their keys
    #[command(after_help = "Example:\n  chancery certificate delete site --confirm site")]
    Delete {
        /// Its name
        name: Slug,
        /// The name once more, exactly
        #[arg(long, value_name = "NAME")]
        confirm: String,
        /// Even when hosts lose HTTPS
        #[arg(long)]
        force: bool,
        /// Only if its revision is still this one
        #[arg(long, value_name = "REVISION")]
        expect: Option<u64>,
    },
    /// Import everything that a folder holds: pairs of PEM files, or what certbot, Caddy, acme.sh, lego or Traefik keep
    #[command(
        after_help = "A plan comes first, then one verdict a line: added, replaced, unchanged, refused, skipped or failed. Pairs are found by \
                      their public keys. What the project has already is left alone, so the same command goes on where an import was cut off.\n\n\
                      Exit status 0: all was added or is there; 1: something was refused; 2: it could not run.\n\n\
                      Example:\n  chancery certificate import /etc/letsencrypt --region eu-1 --dry-run"
    )]
    Import(Import),
    /// Wait until a certificate reaches a status
    #[command(
        after_help = "Exit status 1: it can no longer come to that; 3: the time is over.\n\nExample:\n  chancery certificate wait site --status active --timeout 60s"
    )]
    Wait {
        /// Its name
        name: Slug,
        /// verifying, ready, error, expired, revoked, deleted, "in progress", active (served everywhere) or standby
        #[arg(long, value_name = "STATUS")]
        status: crate::commands::certificate::wait::Target,
        /// How long, as 500ms, 60s, 5m or 1h
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
        timeout: Duration,
    },
}

/// `chancery certificate import`
#[derive(Clone, Debug, Args)]
pub struct Import {
    /// The folder
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// A region or country where they work
    #[arg(long = "region", value_name = "REGION", required = true)]
    pub regions: Vec<Slug>,
    /// As backups, which never go live by being uploaded
    #[arg(long)]
    pub standby: bool,
    /// Print the plan and what would become of each, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask before it begins
    #[arg(long)]
    pub yes: bool,
    /// Begin each name with this and a hyphen
    #[arg(long, value_name = "PREFIX", value_parser = crate::commands::certificate::import::prefix)]
    pub name_prefix: Option<String>,
    /// A file that holds a password of PKCS#12 or of encrypted keys; they are tried in this order
    #[arg(long = "password-file", value_name = "FILE")]
    pub password_files: Vec<PathBuf>,
    /// Take what one tool has written and nothing else; plain takes every folder for an ordinary one
    #[arg(long, value_enum)]
    pub layout: Option<crate::commands::certificate::import::Layout>,
}

/// `chancery host`
#[derive(Debug, Args)]
pub struct Host {
    /// The host
    pub host: String,
    /// One region only
    #[arg(long, value_name = "REGION")]
    pub region: Option<Slug>,
    /// A moment of the past, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub at: Option<Time>,
}

/// `chancery verify`
#[derive(Clone, Debug, Args)]
pub struct Verify {
    /// The server's certificate and help for its path
    #[arg(long, value_name = "FILE")]
    pub chain: PathBuf,
    /// The private key that must belong to it
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// A DNS name or IP address that clients would ask for; without one, names are not looked at
    #[arg(long = "domain", value_name = "DOMAIN")]
    pub domains: Vec<control::chain::offline::Domain>,
    /// The roots that clients trust; without it, the public ones
    #[arg(long, value_name = "FILE")]
    pub roots: Option<PathBuf>,
    /// The moment, RFC 3339; without it, now
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub at: Option<Time>,
    /// A file whose first line is the password of an encrypted key or a PKCS#12 file; asked for on a terminal unless told
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

/// `chancery events`
#[derive(Debug, Subcommand)]
pub enum Events {
    /// Follow the events as they are committed, without a gap
    #[command(after_help = "Example:\n  chancery events tail --project acme")]
    Tail {
        /// Begin with this one; without it, with the next one to come
        #[arg(long, value_name = "SEQ")]
        from: Option<u64>,
    },
    /// Print committed events; with --json the exact bytes of one event a line
    #[command(
        after_help = "FROM and TO are a sequence of the log, with --project a projectseq of that project.\n\nExample:\n  chancery events replay --from 1 --to 100 --json"
    )]
    Replay {
        /// The first one
        #[arg(long, value_name = "SEQ")]
        from: Option<u64>,
        /// The last one; the head unless told
        #[arg(long, value_name = "SEQ")]
        to: Option<u64>,
    },
}

/// `chancery audit`
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Pull the whole log and check its hashes, gaps, order and signed tree here
    #[command(
        after_help = "Example:\n  chancery audit verify --json\n  chancery audit verify --since last-year.checkpoint --key log.vkey"
    )]
    Verify {
        /// A checkpoint that was kept: the log must begin with what it covers. Can be repeated
        #[arg(long, value_name = "FILE")]
        since: Vec<PathBuf>,
        /// The log's verifier key, or a file that holds it. Can be repeated, for a log that was restored
        #[arg(long, value_name = "VKEY")]
        key: Vec<String>,
    },
    /// Replay the log into fresh views and a fresh tree and compare them with the live ones
    #[command(after_help = "Example:\n  chancery audit rebuild")]
    Rebuild,
    /// The key by which others check what the log has signed
    #[command(after_help = "Example:\n  chancery audit key --out log.vkey")]
    Key {
        /// The file to write
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Have the log as it is now signed, to be kept elsewhere
    #[command(
        after_help = "Example:\n  chancery audit checkpoint --out 2026-11.checkpoint\n  chancery audit checkpoint --since 2026-10.checkpoint --key log.vkey"
    )]
    Checkpoint {
        /// The file to write; stdout unless told
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// An earlier checkpoint: have it proven that the log has only grown since
        #[arg(long, value_name = "FILE")]
        since: Option<PathBuf>,
        /// The log's verifier key, or a file that holds it. Can be repeated, for a log that was restored
        #[arg(long, value_name = "VKEY")]
        key: Vec<String>,
    },
    /// Prove one event to others, or check such a proof, which needs no connection
    #[command(
        after_help = "Example:\n  chancery audit proof 1042 --out 1042.tlog-proof\n  chancery audit proof --verify 1042.tlog-proof --key log.vkey"
    )]
    Proof {
        /// The event: its sequence, with a project its projectseq
        #[arg(value_name = "SEQ", required_unless_present = "verify")]
        sequence: Option<u64>,
        /// The file to write; stdout unless told
        #[arg(long, value_name = "FILE", conflicts_with = "verify")]
        out: Option<PathBuf>,
        /// A proof to check
        #[arg(
            long,
            value_name = "FILE",
            conflicts_with = "sequence",
            requires = "key"
        )]
        verify: Option<PathBuf>,
        /// The log's verifier key, or a file that holds it
        #[arg(long, value_name = "VKEY")]
        key: Vec<String>,
    },
    /// Copy the whole log with its tree, in the layout of C2SP tlog-tiles; again into the same folder, only what is new
    #[command(after_help = "Example:\n  chancery audit export --out /srv/log --key log.vkey")]
    Export {
        /// The folder
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// The log's verifier key, or a file that holds it
        #[arg(long, value_name = "VKEY")]
        key: Vec<String>,
    },
}

/// `chancery backup`
#[derive(Debug, Args)]
pub struct Backup {
    /// The backup's folder, made if it is not there
    pub dir: PathBuf,
    /// Only check the backup that is there; needs no server and no key
    #[arg(long)]
    pub verify: bool,
}

/// `chancery restore`
#[derive(Debug, Args)]
pub struct Restore {
    /// The backup's folder
    pub dir: PathBuf,
    /// The state folder to make: absent or empty
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The file with the root key that wraps the backup's keys
    #[arg(long, value_name = "FILE")]
    pub root_key: PathBuf,
    /// The configuration that will be started on it, for where it keeps state, root key and operator's credentials
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `chancery seal`
#[derive(Debug, Args)]
pub struct Seal {
    /// The private key: PKCS#8, PKCS#1 or SEC1, as PEM or DER, or a PKCS#12 file
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// A file whose first line is its password; asked for on a terminal unless told
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

/// The kinds of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindOfResource {
    /// An object storage bucket
    Bucket,
    /// A CDN resource
    Cdn,
    /// A load balancer's listener
    Listener,
}

impl From<KindOfResource> for ResourceKind {
    fn from(kind: KindOfResource) -> Self {
        match kind {
            KindOfResource::Bucket => Self::Bucket,
            KindOfResource::Cdn => Self::Cdn,
            KindOfResource::Listener => Self::Listener,
        }
    }
}

/// The kinds of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindOfCertificate {
    /// Chain and key, served to clients
    Server,
    /// A CA that client certificates are checked against
    Ca,
}

impl From<KindOfCertificate> for CertificateKind {
    fn from(kind: KindOfCertificate) -> Self {
        match kind {
            KindOfCertificate::Server => Self::Server,
            KindOfCertificate::Ca => Self::Ca,
        }
    }
}

/// Something that is on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Allowed
    On,
    /// Forbidden
    Off,
}

/// The keys that are made inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindOfKey {
    /// RSA with 2048 bits
    Rsa2048,
    /// RSA with 3072 bits
    Rsa3072,
    /// RSA with 4096 bits
    Rsa4096,
    /// ECDSA on P-256
    P256,
    /// ECDSA on P-384
    P384,
    /// Ed25519, which public CAs do not sign
    Ed25519,
}

impl From<KindOfKey> for wire::request::NewKey {
    fn from(kind: KindOfKey) -> Self {
        match kind {
            KindOfKey::Rsa2048 => Self::Rsa2048,
            KindOfKey::Rsa3072 => Self::Rsa3072,
            KindOfKey::Rsa4096 => Self::Rsa4096,
            KindOfKey::P256 => Self::P256,
            KindOfKey::P384 => Self::P384,
            KindOfKey::Ed25519 => Self::Ed25519,
        }
    }
}

/// The forms in which a certificate is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Two PEM files: the chain, and the key
    Nginx,
    /// One PEM file with chain and key
    Haproxy,
    /// A PKCS#12 container under a password, as Java and Windows read it
    Pkcs12,
}

/// HTTPS as people command it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Selection decides
    Auto,
    /// No HTTPS
    Off,
}

impl From<Mode> for Https {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Auto => Self::Auto,
            Mode::Off => Self::Off,
        }
    }
}

/// A moment that was read from RFC 3339 text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Time {
    /// As it was written.
    pub text: String,
    /// Unix microseconds.
    pub micros: i64,
}

fn project(text: &str) -> Result<Slug, lifecycle::names::Error> {
    Slug::project(text)
}

fn right(text: &str) -> Result<String, String> {
    if lifecycle::decide::rights::well_formed(text) {
        Ok(text.to_owned())
    } else {
        Err(
            "a right is a subject pattern below the project, such as cmd.certificate.* or query.*"
                .to_owned(),
        )
    }
}

fn time(text: &str) -> Result<Time, String> {
    wire::envelope::micros(text)
        .map(|micros| Time {
            text: text.to_owned(),
            micros,
        })
        .ok_or_else(|| "a time is RFC 3339, as 2026-11-22T12:00:00Z".to_owned())
}

/// Reads `500ms`, `60s`, `5m`, `1h`, or plain seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a time span is a number with ms, s, m or h, as 60s".to_owned();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    // A year is longer than anybody waits and keeps arithmetic with clocks from overflowing.
    millis
        .filter(|ms| *ms <= 365 * 86_400_000)
        .map(Duration::from_millis)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_and_an_example() {
        fn walk(command: &clap::Command, path: &str) {
            assert!(command.get_about().is_some(), "{path} has no help");
            let example = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                example.contains("Example:\n  chancery "),
                "{path} has no example"
            );
            for argument in command
                .get_arguments()
                .filter(|a| !matches!(a.get_id().as_str(), "help" | "version"))
            {
                assert!(
                    argument.get_help().is_some(),
                    "{path} {} has no help",
                    argument.get_id()
                );
            }
            for sub in command.get_subcommands() {
                walk(sub, &format!("{path} {}", sub.get_name()));
            }
        }
        walk(&Cli::command(), "chancery");
    }

    /// An example in the help that does not parse teaches people errors.
    #[test]
    fn every_example_parses() {
        fn walk(command: &clap::Command, seen: &mut usize) {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            for line in help.lines().filter_map(|l| l.strip_prefix("  chancery ")) {
                let line = line.split(" > ").next().unwrap_or(line);
                let words = std::iter::once("chancery")
                    .chain(line.split_whitespace().map(|w| w.trim_matches('\'')));
                if let Err(error) = Cli::try_parse_from(words) {
                    panic!("{line}: {error}");
                }
                *seen += 1;
            }
            for sub in command.get_subcommands() {
                walk(sub, seen);
            }
        }
        let mut seen = 0;
        walk(&Cli::command(), &mut seen);
        assert!(seen > 40, "only {seen} examples were found");
    }

    #[test]
    fn global_flags_stand_before_or_after_the_command() {
        let id = "0190a5b0-0000-7000-8000-000000000000";
        for words in [
            [
                "chancery",
                "--json",
                "--project",
                "acme",
                "--id",
                id,
                "domain",
                "list",
            ],
            [
                "chancery",
                "domain",
                "list",
                "--json",
                "--project",
                "acme",
                "--id",
                id,
            ],
            [
                "chancery",
                "domain",
                "--json",
                "list",
                "--project",
                "acme",
                "--id",
                id,
            ],
        ] {
            let cli = Cli::try_parse_from(words).expect("they parse");
            assert!(cli.global.json);
            assert_eq!(cli.global.project.as_ref().map(Slug::as_str), Some("acme"));
            assert_eq!(cli.global.id.map(|i| i.to_string()).as_deref(), Some(id));
        }
    }

    #[test]
    fn wrong_words_are_usage_errors() {
        for words in [
            &["chancery", "certificate", "issue", "x"][..],
            &["chancery", "host", "a.example", "--at", "yesterday"],
            &["chancery", "certificate", "delete", "x"],
            &["chancery", "project", "create", "A"],
            &["chancery", "project", "create", "ab"],
            &["chancery", "certificate", "wait", "x", "--status", "shiny"],
            &[
                "chancery",
                "certificate",
                "wait",
                "x",
                "--status",
                "ready",
                "--timeout",
                "-3s",
            ],
            &[
                "chancery", "access", "create", "a", "--out", "f", "--right", "log.>",
            ],
            &["chancery", "--creds", "a", "--nkey", "b", "status"],
            &["chancery", "domain", "add", "a.example", "--region", "r"],
        ] {
            let error = Cli::try_parse_from(words).expect_err("it is wrong");
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }

    #[test]
    fn time_spans_are_read() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("60"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in [
            "",
            "s",
            "1.5s",
            "1d",
            "99999999999999999999s",
            "18446744073709551615h",
            "400000h",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
