//! The mailbox behind the door: hands commands to ingestion and queries to the views.

use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;
use bus::door::{Kind, Request};

use lifecycle::command::Asker;
use lifecycle::names::Slug;
use lifecycle::rejection::Code;
use tracing::Instrument as _;
use wire::answer::{Answer, Problem};

use crate::ingestion::{Incoming, Ingestion};
use crate::monitor;
use crate::turns::Turns;
use crate::views::Views;

/// How many requests may wait for a turn; the door bounds what is in flight.
const MAILBOX: usize = 4_096;

pub(crate) struct Front {
    pub(crate) ingestion: Arc<Ingestion>,
    pub(crate) views: Arc<Views>,
    /// Places for queries: one project's many must not keep another's few waiting.
    pub(crate) queries: Arc<Turns<Slug>>,
    pub(crate) runtime: tokio::runtime::Handle,
}

impl Front {
    pub(crate) fn spawn(front: Front) -> Addr<Front> {
        Front::start_in_arbiter(&Arbiter::new().handle(), |ctx| {
            ctx.set_mailbox_capacity(MAILBOX);
            front
        })
    }
}

impl Actor for Front {
    type Context = Context<Self>;
}

impl Handler<Request> for Front {
    type Result = ();

    fn handle(&mut self, request: Request, _: &mut Self::Context) {
        let (Ok(project), Ok(from)) = (
            Slug::name(&request.project),
            Slug::name(&request.asker.project),
        ) else {
            let problem = Problem::new(
                Code::Malformed,
                "a project's id is 3 to 40 of a-z, 0-9 and hyphens",
                "",
            );
            return request
                .responder
                .problem(problem.status, &problem.title, &problem.to_json());
        };
        let asker = Asker {
            actor: request.asker.actor.clone(),
            project: from,
            operator: request.asker.operator,
        };
        match request.kind {
            kind @ (Kind::Command | Kind::Queue) => {
                let ingestion = Arc::clone(&self.ingestion);
                let begun = Instant::now();
                let (of, command) = (
                    project.to_string(),
                    format!("{}.{}", request.noun, request.verb),
                );
                let (actor, from) = (asker.actor.clone(), asker.project.to_string());
                // Ingestion says which id it is: the header's, the body's, or a fresh one.
                let span = tracing::info_span!("command", correlation = tracing::field::Empty);
                let taken = async move {
                    let incoming = Incoming {
                        project,
                        noun: request.noun,
                        verb: request.verb,
                        asker,
                        id: request.id,
                        body: request.body,
                        queued: kind == Kind::Queue,
                    };
                    let answer = ingestion.take(incoming).await;
                    let took = begun.elapsed();
                    monitor::command(&answer, took);
                    monitor::line(&answer, &of, &command, &actor, &from, took);
                    match answer {
                        Answer::Problem(problem) => {
                            request.responder.problem(
                                problem.status,
                                &problem.title,
                                &problem.to_json(),
                            );
                        }
                        accepted => request.responder.answer(&accepted.to_json()),
                    }
                };
                self.runtime.spawn(taken.instrument(span));
            }
            Kind::Query => {
                let (views, queries) = (Arc::clone(&self.views), Arc::clone(&self.queries));
                let runtime = self.runtime.clone();
                let begun = Instant::now();
                self.runtime.spawn(async move {
                    // A rebuild takes minutes and has a limit of its own; the operator can ask other things meanwhile.
                    let turn = match request.noun.as_str() {
                        "rebuild" => None,
                        _ => Some(queries.take(&asker.project).await),
                    };
                    // Views read pages of tables: that is no work for the threads on which commits wait for NATS.
                    let view = move || {
                        let _turn = turn;
                        let answer = views.answer(&project, &request.noun, &asker, &request.body);
                        let answered = runtime.block_on(answer);
                        monitor::query(&request.noun, &answered, begun.elapsed());
                        match answered {
                            Ok(body) => request.responder.answer(&body),
                            Err(problem) => request.responder.problem(
                                problem.status,
                                &problem.title,
                                &problem.to_json(),
                            ),
                        }
                    };
                    // A view that panicked has no answer; whoever asked asks again.
                    let _ = tokio::task::spawn_blocking(view).await;
                });
            }
        }
    }
}
