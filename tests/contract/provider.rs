//! The provider of tokens for tests does what real ones do, and what a test plans.

use std::{sync::Arc, time::Duration};

use gateway_storage::conformance::CANARY;
use testkit::provider::{Answer, Counts, Provider, Refusal, Tokens, refresh, refresh_as};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

/// A provider at which the account `a` has logged in.
async fn provider() -> (Provider, Tokens) {
    let provider = Provider::start().await;
    let tokens = provider.log_in("a");
    (provider, tokens)
}

fn counts(requests: u64, grants: u64, reuses: u64) -> Counts {
    Counts { requests, grants, reuses, ..Counts::default() }
}

async fn spend(provider: &Provider, tokens: &Tokens) -> Result<Tokens, Refusal> {
    refresh(provider.address(), &tokens.refresh_token).await
}

#[tokio::test]
async fn a_grant_rotates() {
    let (provider, first) = provider().await;
    let second = spend(&provider, &first).await.unwrap();
    let third = refresh_as(provider.address(), &second.refresh_token, "me").await.unwrap();
    assert!(first != second && second != third && third == provider.current("a"));
    assert!(third.refresh_token.contains(CANARY[1]) && third.access_token.contains(CANARY[0]));
    assert!(!third.expires_in.is_zero() && !format!("{third:?}").contains(CANARY[0]));
    assert_eq!(provider.generation("a"), 3);
    let uses = provider.take_uses();
    let steps: Vec<_> = uses.iter().map(|u| (&*u.account, &*u.client, u.spent, u.granted)).collect();
    assert_eq!(steps, [("a", "", 1, Some(2)), ("a", "me", 2, Some(3))]);
    assert!(uses[0].at <= uses[1].at && provider.take_uses().is_empty());
    assert_eq!(provider.counts("a"), counts(2, 2, 0));
}

#[tokio::test]
async fn a_reuse_revokes_the_family() {
    let (provider, first) = provider().await;
    let other = provider.log_in("b");
    let second = spend(&provider, &first).await.unwrap();
    assert_eq!(spend(&provider, &first).await, Err(Refusal::InvalidGrant));
    assert!(provider.is_revoked("a") && !provider.is_revoked("b"));
    for tokens in [&second, &first] {
        assert_eq!(spend(&provider, tokens).await, Err(Refusal::InvalidGrant));
    }
    assert_eq!(provider.take_uses()[1].granted, None);
    assert_eq!(provider.counts("a"), counts(4, 1, 1));

    // Another login begins a new family, which the old tokens do not revoke.
    let new = provider.log_in("a");
    assert_eq!(spend(&provider, &first).await, Err(Refusal::InvalidGrant));
    spend(&provider, &new).await.unwrap();
    assert_eq!(provider.counts("a"), counts(6, 2, 1));

    spend(&provider, &other).await.unwrap();
    let unknown = refresh(provider.address(), "never issued").await;
    assert_eq!((unknown, provider.total()), (Err(Refusal::InvalidGrant), counts(8, 3, 1)));

    provider.revoke("b");
    let revoked = spend(&provider, &provider.current("b")).await;
    assert_eq!((revoked, provider.counts("b")), (Err(Refusal::InvalidGrant), counts(2, 1, 0)));
}

#[tokio::test]
async fn a_spent_token_can_be_forgiven() {
    let (provider, first) = provider().await;
    provider.forgive(Duration::from_secs(600));
    let second = spend(&provider, &first).await.unwrap();
    assert_eq!(spend(&provider, &first).await.as_ref(), Ok(&second));
    assert_eq!(provider.counts("a"), Counts { forgiven: 1, ..counts(2, 1, 0) });
    // Only the one before the newest.
    spend(&provider, &second).await.unwrap();
    assert_eq!(spend(&provider, &first).await, Err(Refusal::InvalidGrant));
    assert_eq!(provider.counts("a").reuses, 1);
}

#[tokio::test]
async fn a_request_is_lost() {
    let (provider, first) = provider().await;
    provider.plan([Answer::LoseRequest]);
    assert_eq!(spend(&provider, &first).await, Err(Refusal::Lost));
    assert_eq!(provider.counts("a"), counts(1, 0, 0));
    spend(&provider, &first).await.unwrap();
}

#[tokio::test]
async fn a_reply_is_lost() {
    for answer in [Answer::LoseReply, Answer::CutReply] {
        let (provider, first) = provider().await;
        provider.plan([answer]);
        assert_eq!(spend(&provider, &first).await, Err(Refusal::Lost), "{answer:?}");
        assert_eq!(provider.counts("a"), counts(1, 1, 0), "{answer:?}");
        assert_eq!(spend(&provider, &first).await, Err(Refusal::InvalidGrant), "{answer:?}");
        assert_eq!(provider.counts("a"), counts(2, 1, 1), "{answer:?}");
    }
}

#[tokio::test]
async fn a_reply_is_cut_in_the_middle() {
    let (provider, first) = provider().await;
    provider.plan([Answer::CutReply]);
    let mut connection = TcpStream::connect(provider.address()).await.unwrap();
    let form = format!("grant_type=refresh_token&refresh_token={}", first.refresh_token);
    let head = format!("POST /token HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", form.len());
    connection.write_all((head + &form).as_bytes()).await.unwrap();
    let mut reply = String::new();
    connection.read_to_string(&mut reply).await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let (_, length) = head.split_once("content-length: ").unwrap();
    let length: usize = length.lines().next().unwrap().parse().unwrap();
    assert_eq!(body.len(), length / 2);
    assert!(body.starts_with('{') && !body.ends_with('}'));
}

#[tokio::test]
async fn a_refusal_spends_nothing() {
    let (provider, first) = provider().await;
    let minute = Duration::from_secs(60);
    let planned = [
        (Answer::TooMany(minute), Refusal::Retry { status: 429, after: Some(minute) }),
        (Answer::Fail, Refusal::Retry { status: 500, after: None }),
        (Answer::Refuse, Refusal::InvalidGrant),
    ];
    provider.plan(planned.map(|(answer, _)| answer));
    for (answer, refusal) in planned {
        assert_eq!(spend(&provider, &first).await, Err(refusal), "{answer:?}");
    }
    assert_eq!(provider.counts("a"), counts(3, 0, 0));
    spend(&provider, &first).await.unwrap();
}

#[tokio::test]
async fn an_account_has_a_plan_of_its_own() {
    let (provider, first) = provider().await;
    let other = provider.log_in("b");
    provider.plan([Answer::Refuse]);
    provider.plan_for("a", [Answer::Fail, Answer::Usual]);
    assert_eq!(spend(&provider, &first).await, Err(Refusal::Retry { status: 500, after: None }));
    let second = spend(&provider, &first).await.unwrap();
    assert_eq!(spend(&provider, &other).await, Err(Refusal::InvalidGrant));
    spend(&provider, &second).await.unwrap();
    spend(&provider, &other).await.unwrap();
}

/// The grant comes before the wait, or after it.
#[tokio::test]
async fn an_answer_is_late() {
    let delay = Duration::from_millis(200);
    for (answer, is_granted) in [(Answer::Late(delay), true), (Answer::Slow(delay), false)] {
        let (provider, first) = provider().await;
        provider.plan([answer]);
        let begun = Instant::now();
        let pending = tokio::spawn({
            let (provider, first) = (provider.clone(), first.clone());
            async move { spend(&provider, &first).await }
        });
        while provider.counts("a").requests == 0 {
            tokio::task::yield_now().await;
        }
        if is_granted {
            while provider.counts("a").grants == 0 {
                tokio::task::yield_now().await;
            }
            assert!(!pending.is_finished() || begun.elapsed() >= delay, "{answer:?}");
        }
        pending.await.unwrap().unwrap();
        assert!(begun.elapsed() >= delay, "{answer:?}");
        let granted = provider.take_uses()[0].at.duration_since(begun.into_std());
        assert!(is_granted || granted >= delay, "{answer:?}");
    }
}

#[tokio::test]
async fn a_caller_that_is_gone_has_spent_the_token() {
    for answer in [Answer::Late(Duration::from_secs(600)), Answer::Slow(Duration::from_millis(50))] {
        let (provider, first) = provider().await;
        provider.plan([answer]);
        let pending = tokio::spawn({
            let (provider, first) = (provider.clone(), first.clone());
            async move { spend(&provider, &first).await }
        });
        while provider.counts("a").requests == 0 {
            tokio::task::yield_now().await;
        }
        pending.abort();
        while provider.counts("a").grants == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(spend(&provider, &first).await, Err(Refusal::InvalidGrant), "{answer:?}");
        assert_eq!(provider.counts("a"), counts(2, 1, 1), "{answer:?}");
    }
}

#[tokio::test]
async fn what_is_no_refresh_is_no_request() {
    let (provider, first) = provider().await;
    for (line, form) in [
        ("GET /token", String::new()),
        ("POST /other", format!("grant_type=refresh_token&refresh_token={}", first.refresh_token)),
        ("POST /token", format!("grant_type=password&refresh_token={}", first.refresh_token)),
        ("POST /token", "grant_type=refresh_token".to_owned()),
    ] {
        let mut connection = TcpStream::connect(provider.address()).await.unwrap();
        let head = format!("{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", form.len());
        connection.write_all((head + &form).as_bytes()).await.unwrap();
        let mut status = [0; 12];
        connection.read_exact(&mut status).await.unwrap();
        assert!([b"HTTP/1.1 400", b"HTTP/1.1 404"].contains(&&status), "{line}");
    }
    assert_eq!(provider.total(), Counts::default());
}

/// Of many users of one token at once, one gets a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_wins() {
    let (provider, first) = provider().await;
    let first = Arc::new(first);
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let (provider, first) = (provider.clone(), Arc::clone(&first));
            tokio::spawn(async move { spend(&provider, &first).await.is_ok() })
        })
        .collect();
    let mut granted = 0;
    for task in tasks {
        granted += u32::from(task.await.unwrap());
    }
    assert_eq!((granted, provider.counts("a")), (1, counts(50, 1, 1)));
}
