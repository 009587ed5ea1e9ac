/// One item of each kind.
pub trait Everything: Backend {
    /// Wrapped with the backend.
    type Transaction: Transaction;
    /// Not an operation.
    fn set_limit(&mut self, limit: usize);
    /// The layer is called, too; there is a default body.
    fn set_name(&mut self, name: String) {
        drop(name);
    }
    /// The layer modifies the result.
    fn describe(&self) -> impl Future<Output = Result<Text>> + Send;
    /// Borrowed and owned arguments, with names that the expansion also uses.
    fn get(
        &self,
        key: &Key,
        layer: Option<&'static str>,
        inner: Cow<'_, [u8]>,
        call: fn(&str) -> bool,
    ) -> impl Future<Output = Result<Vec<u8>>> + Send;
    /// A batch.
    fn set_many(
        &self,
        items: &[(Key, Value)],
    ) -> impl Future<Output = Result<BatchReport>> + Send;
    /// Returns the wrapped type.
    fn begin(&self) -> impl Future<Output = Result<Self::Transaction>> + Send;
    /// Ends it.
    fn close(&self) -> impl Future<Output = Result<()>> + Send;
    /// Returns a stream. Its name is a keyword.
    fn r#yield(&self, prefix: &str) -> impl Stream<Item = Result<Record>> + Send;
    /// Its name is a keyword, too.
    fn r#move(&self, r#type: u8) -> impl Future<Output = Result<()>> + Send;
}
const _: () = {
    struct __DescribeCall {}
    impl<'__on, __B: Everything> ::gateway_storage::layer::Call<&'__on __B>
    for __DescribeCall {
        type Output = Text;
        const OPERATION: ::gateway_storage::layer::Operation = ::gateway_storage::layer::Operation::new(
                "describe",
                ::gateway_storage::layer::OperationKind::Control,
            )
            .harmless()
            .operator();
        #[inline]
        async fn run(&self, on: &'__on __B) -> ::gateway_storage::Result<Text> {
            <__B as Everything>::describe(on).await
        }
    }
    struct __GetCall<'__call> {
        key: &'__call Key,
        layer: Option<&'static str>,
        inner: Cow<'__call, [u8]>,
        call: fn(&str) -> bool,
    }
    impl<'__on, '__call, __B: Everything> ::gateway_storage::layer::Call<&'__on __B>
    for __GetCall<'__call> {
        type Output = Vec<u8>;
        const OPERATION: ::gateway_storage::layer::Operation = ::gateway_storage::layer::Operation::new(
            "get",
            ::gateway_storage::layer::OperationKind::Read,
        );
        #[inline]
        async fn run(&self, on: &'__on __B) -> ::gateway_storage::Result<Vec<u8>> {
            <__B as Everything>::get(
                    on,
                    ::core::clone::Clone::clone(&self.key),
                    ::core::clone::Clone::clone(&self.layer),
                    ::core::clone::Clone::clone(&self.inner),
                    ::core::clone::Clone::clone(&self.call),
                )
                .await
        }
    }
    struct __SetManyCall<'__call> {
        items: &'__call [(Key, Value)],
    }
    impl<'__on, '__call, __B: Everything> ::gateway_storage::layer::Call<&'__on __B>
    for __SetManyCall<'__call> {
        type Output = BatchReport;
        const OPERATION: ::gateway_storage::layer::Operation = ::gateway_storage::layer::Operation::new(
                "set_many",
                ::gateway_storage::layer::OperationKind::Write,
            )
            .overwrites();
        fn batch_size(&self) -> ::core::option::Option<usize> {
            ::core::option::Option::Some(self.items.len())
        }
        fn failure(
            output: &BatchReport,
        ) -> ::core::option::Option<&::gateway_storage::Error> {
            #[allow(unused_imports)]
            use ::gateway_storage::layer::NoReport as _;
            ::gateway_storage::layer::Outcomes::<BatchReport>::failure(output)
        }
        #[inline]
        async fn run(&self, on: &'__on __B) -> ::gateway_storage::Result<BatchReport> {
            <__B as Everything>::set_many(on, ::core::clone::Clone::clone(&self.items))
                .await
        }
        fn failed_items(
            output: &mut BatchReport,
            again: impl ::core::ops::FnMut(&mut ::gateway_storage::Error) -> bool,
        ) -> ::std::vec::Vec<usize> {
            #[allow(unused_imports)]
            use ::gateway_storage::layer::NoReport as _;
            ::gateway_storage::layer::Outcomes::<
                BatchReport,
            >::failed_items(output, again)
        }
        async fn run_items(
            &self,
            on: &'__on __B,
            items: &[usize],
        ) -> ::gateway_storage::Result<BatchReport> {
            let part: ::std::vec::Vec<_> = items
                .iter()
                .map(|at| ::core::clone::Clone::clone(&self.items[*at]))
                .collect();
            <__B as Everything>::set_many(on, &part).await
        }
        fn merge_items(
            report: &mut BatchReport,
            items: &[usize],
            result: ::gateway_storage::Result<BatchReport>,
        ) {
            #[allow(unused_imports)]
            use ::gateway_storage::layer::NoReport as _;
            ::gateway_storage::layer::Outcomes::<
                BatchReport,
            >::merge_items(report, items, result);
        }
    }
    struct __BeginCall {}
    impl<'__on, __B: Everything> ::gateway_storage::layer::Call<&'__on __B>
    for __BeginCall {
        type Output = <__B as Everything>::Transaction;
        const OPERATION: ::gateway_storage::layer::Operation = ::gateway_storage::layer::Operation::new(
            "begin",
            ::gateway_storage::layer::OperationKind::Control,
        );
        #[inline]
        async fn run(
            &self,
            on: &'__on __B,
        ) -> ::gateway_storage::Result<<__B as Everything>::Transaction> {
            <__B as Everything>::begin(on).await
        }
    }
    struct __CloseCall {}
    impl<'__on, __B: Everything> ::gateway_storage::layer::Call<&'__on __B>
    for __CloseCall {
        type Output = ();
        const OPERATION: ::gateway_storage::layer::Operation = ::gateway_storage::layer::Operation::new(
                "close",
                ::gateway_storage::layer::OperationKind::Control,
            )
            .replayable()
            .operator()
            .closes();
        #[inline]
        async fn run(&self, on: &'__on __B) -> ::gateway_storage::Result<()> {
            <__B as Everything>::close(on).await
        }
    }
    struct __MoveCall {
        r#type: u8,
    }
    impl<'__on, __B: Everything> ::gateway_storage::layer::Call<&'__on __B>
    for __MoveCall {
        type Output = ();
        const OPERATION: ::gateway_storage::layer::Operation = ::gateway_storage::layer::Operation::new(
            "move",
            ::gateway_storage::layer::OperationKind::Write,
        );
        #[inline]
        async fn run(&self, on: &'__on __B) -> ::gateway_storage::Result<()> {
            <__B as Everything>::r#move(on, ::core::clone::Clone::clone(&self.r#type))
                .await
        }
    }
    #[deny(clippy::missing_trait_methods)]
    impl<__L: ::gateway_storage::layer::Layer, __B: Everything> Everything
    for ::gateway_storage::layer::Layered<__L, __B> {
        type Transaction = LayeredTransaction<__L, <__B as Everything>::Transaction>;
        fn set_limit(&mut self, limit: usize) {
            <__B as Everything>::set_limit(self.inner_mut(), limit)
        }
        fn set_name(&mut self, name: String) {
            ::gateway_storage::layer::Layer::set_name(
                self.layer_mut(),
                ::core::clone::Clone::clone(&name),
            );
            <__B as Everything>::set_name(self.inner_mut(), name)
        }
        #[inline]
        async fn describe(&self) -> ::gateway_storage::Result<Text> {
            let call = __DescribeCall {};
            let (layer, inner) = (self.layer(), self.inner());
            let mut output = ::gateway_storage::layer::Layer::around(layer, inner, call)
                .await?;
            ::gateway_storage::layer::Layer::complete(layer, &mut output);
            ::core::result::Result::Ok(output)
        }
        #[inline]
        async fn get(
            &self,
            key: &Key,
            layer: Option<&'static str>,
            inner: Cow<'_, [u8]>,
            call: fn(&str) -> bool,
        ) -> ::gateway_storage::Result<Vec<u8>> {
            let call = __GetCall {
                key,
                layer,
                inner,
                call,
            };
            let (layer, inner) = (self.layer(), self.inner());
            ::gateway_storage::layer::Layer::around(layer, inner, call).await
        }
        #[inline]
        async fn set_many(
            &self,
            items: &[(Key, Value)],
        ) -> ::gateway_storage::Result<BatchReport> {
            let call = __SetManyCall { items };
            let (layer, inner) = (self.layer(), self.inner());
            ::gateway_storage::layer::Layer::around(layer, inner, call).await
        }
        #[inline]
        async fn begin(&self) -> ::gateway_storage::Result<Self::Transaction> {
            let call = __BeginCall {};
            let (layer, inner) = (self.layer(), self.inner());
            ::core::result::Result::Ok(
                LayeredTransaction::new(
                    ::core::clone::Clone::clone(layer),
                    ::gateway_storage::layer::Layer::around(layer, inner, call).await?,
                ),
            )
        }
        #[inline]
        async fn close(&self) -> ::gateway_storage::Result<()> {
            let call = __CloseCall {};
            let (layer, inner) = (self.layer(), self.inner());
            ::gateway_storage::layer::Layer::around(layer, inner, call).await
        }
        fn r#yield(&self, prefix: &str) -> impl Stream<Item = Result<Record>> + Send {
            let items = <__B as Everything>::r#yield(self.inner(), prefix);
            ::gateway_storage::layer::Layer::around_stream(
                self.layer(),
                ::gateway_storage::layer::Operation::new(
                        "yield",
                        ::gateway_storage::layer::OperationKind::Read,
                    )
                    .backup(),
                items,
            )
        }
        #[inline]
        async fn r#move(&self, r#type: u8) -> ::gateway_storage::Result<()> {
            let call = __MoveCall { r#type };
            let (layer, inner) = (self.layer(), self.inner());
            ::gateway_storage::layer::Layer::around(layer, inner, call).await
        }
    }
};
